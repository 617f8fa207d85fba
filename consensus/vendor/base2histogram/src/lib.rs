//! In the place of `base2histogram`: what openraft asks of it, and nothing is kept but counts. See README.weft.md.

use std::fmt;
use std::marker::PhantomData;

/// Counts what is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    samples: u64,
    kept: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// Nothing is recorded yet.
    pub fn new() -> Self {
        Self { samples: 0, kept: PhantomData }
    }

    /// Records a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records a value so many times.
    pub fn record_n(&mut self, _value: u64, count: u64) {
        self.samples = self.samples.wrapping_add(count);
    }

    /// How many values there were.
    pub fn total(&self) -> u64 {
        self.samples
    }

    /// The number of values; their sizes are not known.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: self.samples, ..PercentileStats::default() }
    }
}

/// What a histogram is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of the library in whose place this is")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[samples: {}]", self.samples)
    }
}

/// A chart without lines.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// An empty one.
    pub fn new() -> Self {
        Self
    }

    /// Stays empty.
    pub fn add(self, _name: &str, _histogram: Histogram) -> Self {
        self
    }

    /// As it is.
    pub fn detailed(&self) -> &Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
