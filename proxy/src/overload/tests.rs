use std::collections::VecDeque;

use super::*;

/// An instance with so many workers, each of which takes so many milliseconds for a call.
struct Instance {
    overload: Arc<Overload>,
    workers: usize,
    takes: u64,
    /// Whose turn is yet to come, and when they came.
    queue: VecDeque<(Place, u64)>,
    /// Who is served, until when.
    served: Vec<(Place, u64, u64)>,
}

/// What came of calls.
#[derive(Debug, Default)]
struct Came {
    /// Answered within a second.
    good: usize,
    late: usize,
    refused: usize,
}

impl Instance {
    fn new(workers: usize, takes: u64) -> Self {
        Self { overload: Overload::new(), workers, takes, queue: VecDeque::new(), served: Vec::new() }
    }

    /// Calls at a rate for a while, in steps of a millisecond of the clock.
    async fn call(&mut self, rate: u64, seconds: u64, clock: &mut u64) -> Came {
        let mut came = Came::default();
        for step in 0..seconds * 1000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            *clock += 1;
            let now = Instant::now();
            let (done, served) = std::mem::take(&mut self.served).into_iter().partition(|(_, _, until)| until <= clock);
            self.served = served;
            for (place, since, _) in done {
                let good = *clock - since <= 1000;
                (came.good, came.late) = (came.good + usize::from(good), came.late + usize::from(!good));
                let _: Option<Change> = place.answered(now);
            }
            for _ in 0..(step + 1) * rate / 1000 - step * rate / 1000 {
                match self.overload.enter(now) {
                    Some(place) => self.queue.push_back((place, *clock)),
                    None => came.refused += 1,
                }
            }
            while self.served.len() < self.workers
                && let Some((place, since)) = self.queue.pop_front()
            {
                self.served.push((place, since, *clock + self.takes));
            }
        }
        came
    }
}

#[tokio::test(start_paused = true)]
async fn three_times_what_it_can_do_leaves_it_doing_what_it_can() {
    for (workers, takes) in [(4, 10), (1, 100), (64, 40), (8, 2)] {
        let (mut instance, mut clock) = (Instance::new(workers, takes), 0);
        let peak = workers as u64 * 1000 / takes;
        let before = instance.call(peak * 8 / 10, 10, &mut clock).await;
        assert_eq!((before.refused, before.late), (0, 0), "{workers} workers of {takes} ms");
        let during = instance.call(peak * 3, 60, &mut clock).await;
        let good = during.good as f64 / (60 * peak) as f64;
        assert!(good > 0.9, "{workers} workers of {takes} ms: {during:?} of {}", 60 * peak);
        instance.call(peak * 8 / 10, 10, &mut clock).await;
        let after = instance.call(peak * 8 / 10, 10, &mut clock).await;
        assert_eq!((after.refused, after.late), (0, 0), "{workers} workers of {takes} ms");
        assert_eq!(instance.overload.most(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_slower_without_a_queue_is_soon_free_again() {
    let (mut instance, mut clock) = (Instance::new(1000, 5), 0);
    instance.call(500, 10, &mut clock).await;
    instance.takes = 400;
    let slower = instance.call(500, 10, &mut clock).await;
    assert!(slower.refused < 500, "{slower:?}");
    let then = instance.call(500, 30, &mut clock).await;
    assert_eq!((then.refused, instance.overload.most()), (0, None), "{then:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_alone_is_no_overload() {
    let (mut instance, mut clock) = (Instance::new(4, 10), 0);
    instance.call(100, 5, &mut clock).await;
    let takes = std::mem::replace(&mut instance.takes, 3000);
    instance.call(100, 1, &mut clock).await;
    instance.takes = takes;
    let after = instance.call(100, 10, &mut clock).await;
    assert_eq!(after.refused, 0, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bound_of_long_ago_refuses_nobody() {
    let (mut instance, mut clock) = (Instance::new(4, 10), 0);
    instance.call(300, 5, &mut clock).await;
    let during = instance.call(1200, 5, &mut clock).await;
    assert!(during.refused > 0 && instance.overload.most().is_some(), "{during:?}");
    instance.call(0, 60, &mut clock).await;
    assert_eq!(instance.overload.most(), None, "nobody is refused any more");
    let now = Instant::now();
    let places: Vec<Option<Place>> = (0..200).map(|_| instance.overload.enter(now)).collect();
    assert!(places.iter().all(Option::is_some), "what comes at once after a rest is taken");
}
