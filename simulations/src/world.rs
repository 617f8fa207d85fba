//! A world in memory: every host's network, disk, clock and randomness, from one seed.

pub mod disk;
pub mod network;

use std::sync::Arc;

use parking_lot::Mutex;
use weft::world::World;
use weft_consensus::disk::Disk;
use weft_proto::UnixMillis;

use crate::dice::Dice;
use disk::SimDisk;
use network::{HostId, Network, SimNet};

/// Wall clock at the start of a run: a Monday morning.
pub const EPOCH: UnixMillis = 1_767_600_000_000;

/// What one host takes from outside itself.
#[derive(Clone)]
pub struct SimWorld {
    net: SimNet,
    disk: Arc<SimDisk>,
    /// How far this host's clock is off, in milliseconds.
    skew: Arc<Mutex<i64>>,
    dice: Arc<Mutex<Dice>>,
}

impl SimWorld {
    /// The world of a host.
    pub fn new(network: &Arc<Network>, host: HostId, disk: Arc<SimDisk>, seed: u64) -> Self {
        let dice = Dice::new(seed, &format!("host {host}"));
        let net = SimNet::new(network.clone(), host);
        Self { net, disk, skew: Arc::default(), dice: Arc::new(Mutex::new(dice)) }
    }

    /// Sets the clock off by so much.
    pub fn skew(&self, millis: i64) {
        *self.skew.lock() = millis;
    }
}

impl World for SimWorld {
    type Net = SimNet;

    fn net(&self) -> &SimNet {
        &self.net
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn now(&self) -> UnixMillis {
        let network = self.net.network();
        (EPOCH + network.passed_over() + network.now()).saturating_add_signed(*self.skew.lock())
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.dice.lock().fill(bytes);
    }
}
