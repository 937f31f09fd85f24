//! Load: so many callers, each with its next request as soon as the last one is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(500);

/// Runs `callers` for as long as `lasts`; `call` gets the caller's number and how often it has called before. Answers how long each call took, and how long all of it.
pub(crate) async fn closed<F, Fut>(callers: usize, lasts: Duration, call: F) -> (Vec<Duration>, Duration)
where
    F: Fn(usize, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let call = Arc::new(call);
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (call, counting, stop) = (call.clone(), counting.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut times, mut n) = (Vec::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    call(caller, n).await;
                    if counting.load(Ordering::Relaxed) {
                        times.push(began.elapsed());
                    }
                    n += 1;
                }
                times
            })
        })
        .collect();
    pause(WARM_UP).await;
    counting.store(true, Ordering::Relaxed);
    let began = Instant::now();
    pause(lasts).await;
    stop.store(true, Ordering::Relaxed);
    let took = began.elapsed();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a caller does not panic"));
    }
    (times, took)
}

/// Begins `per_second` calls a second, whether or not earlier ones have been answered. Answers what each came to.
pub(crate) async fn open<F, Fut, T>(per_second: u32, lasts: Duration, call: F) -> Vec<T>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let (began, mut tasks) = (Instant::now(), Vec::new());
    while began.elapsed() < lasts {
        ticks.tick().await;
        tasks.push(tokio::spawn(call(tasks.len())));
    }
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await.expect("a call does not panic"));
    }
    answers
}

/// Lets time pass.
#[expect(clippy::disallowed_methods, reason = "load is measured over time")]
pub(crate) async fn pause(lasts: Duration) {
    tokio::time::sleep(lasts).await;
}
