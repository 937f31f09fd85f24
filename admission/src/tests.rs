//! Given bounds, when parties ask, then who is admitted.

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

fn bounds(places: usize, places_per_party: usize) -> Bounds {
    Bounds {
        places,
        places_per_party,
        long: Duration::MAX,
        waiting: 40,
        waiting_per_party: 20,
        waiting_per_lane: 10,
        patience: Duration::from_secs(3),
    }
}

#[tokio::test]
async fn another_party_waits_for_one_turn_and_not_for_the_queue_of_the_first() {
    let admission = Admission::new(bounds(1, 1));
    let held = admission.enter("crowd", 0).await.unwrap();
    let mut crowd: Vec<_> = (0..10).map(|_| Box::pin(admission.enter("crowd", 0))).collect();
    crowd.iter_mut().for_each(|entering| assert!(entering.as_mut().now_or_never().is_none()));
    let mut other = Box::pin(admission.enter("other", 0));
    assert!(other.as_mut().now_or_never().is_none());
    drop(held);
    let first = crowd[0].as_mut().now_or_never().expect("the crowd's turn comes first").unwrap();
    assert!(other.as_mut().now_or_never().is_none());
    drop(first);
    other.as_mut().now_or_never().expect("then the other's").unwrap();
}

#[tokio::test]
async fn a_lane_of_a_party_waits_for_one_turn_and_not_for_the_queue_of_another_lane() {
    let admission = Admission::new(bounds(1, 1));
    let held = admission.enter("office", 1).await.unwrap();
    let mut crowd: Vec<_> = (0..10).map(|_| Box::pin(admission.enter("office", 1))).collect();
    crowd.iter_mut().for_each(|entering| assert!(entering.as_mut().now_or_never().is_none()));
    let mut colleague = Box::pin(admission.enter("office", 2));
    assert!(colleague.as_mut().now_or_never().is_none());
    drop(held);
    drop(crowd[0].as_mut().now_or_never().expect("the first lane").unwrap());
    colleague.as_mut().now_or_never().expect("the second lane").unwrap();
    // A full lane refuses, a full party too.
    let _held = admission.enter("office", 1).now_or_never();
    assert!(matches!(admission.enter("office", 1).now_or_never(), Some(Err(Refused)) | None));
}

#[tokio::test]
async fn a_party_takes_its_share_and_leaves_the_rest_to_others() {
    let admission = Admission::new(bounds(4, 2));
    let _held = [admission.enter("greedy", 0).await.unwrap(), admission.enter("greedy", 0).await.unwrap()];
    assert!(Box::pin(admission.enter("greedy", 0)).as_mut().now_or_never().is_none());
    let other = admission.enter("modest", 0).now_or_never().expect("a place is free").unwrap();
    assert_eq!((admission.load().taken, admission.load().waiting), (3, 0));
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_party_whose_requests_take_long_has_one_place_at_a_time() {
    let admission = Admission::new(Bounds { long: Duration::from_millis(15), ..bounds(4, 3) });
    let held = admission.enter("heavy", 0).await.unwrap();
    let long = admission.enter("heavy", 0).await.unwrap();
    tokio::time::advance(Duration::from_millis(100)).await;
    drop(long);
    assert!(Box::pin(admission.enter("heavy", 0)).as_mut().now_or_never().is_none(), "one place is taken, and its requests take long");
    assert!(admission.enter("light", 0).now_or_never().is_some(), "another party is not slowed down");
    drop(held);
}

#[tokio::test]
async fn where_all_queues_are_full_the_party_with_the_most_gives_way() {
    let admission = Admission::new(Bounds { waiting: 10, ..bounds(1, 1) });
    let held = admission.enter("crowd", 0).await.unwrap();
    let mut crowd: Vec<_> = (0..10).map(|_| Box::pin(admission.enter("crowd", 0))).collect();
    crowd.iter_mut().for_each(|entering| assert!(entering.as_mut().now_or_never().is_none()));
    assert_eq!(admission.enter("crowd", 1).now_or_never().map(|entered| entered.is_err()), Some(true));
    let mut other = Box::pin(admission.enter("other", 0));
    assert!(other.as_mut().now_or_never().is_none(), "it waits");
    assert!(matches!(crowd[9].as_mut().now_or_never(), Some(Err(Refused))), "the newest of the crowd gave way");
    drop((held, crowd));
    other.as_mut().now_or_never().expect("a place").unwrap();
}

#[tokio::test]
async fn nobody_waits_longer_than_the_patience() {
    let admission = Admission::new(Bounds { patience: Duration::from_millis(20), ..bounds(1, 1) });
    let _held = admission.enter("a", 0).await.unwrap();
    assert_eq!(admission.enter("b", 0).await.unwrap_err(), Refused);
    assert_eq!(admission.load().waiting, 0);
}

proptest! {
    /// Whatever is asked for, abandoned and given back in whatever order: no bound is crossed, nothing is lost, and at the end nothing is left.
    #[test]
    fn places_are_neither_lost_nor_given_twice(steps in proptest::collection::vec((0..3_u8, 0..4_u8, 0..3_u64), 1..200)) {
        let admission = Admission::new(Bounds { places: 3, places_per_party: 2, long: Duration::MAX, waiting: 6, waiting_per_party: 4, waiting_per_lane: 3, patience: Duration::from_secs(60) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut held, mut waiting) = (Vec::new(), Vec::new());
            for (step, party, lane) in steps {
                match step {
                    0 => {
                        let mut entering = Box::pin(admission.enter(party, lane));
                        match entering.as_mut().now_or_never() {
                            Some(Ok(permit)) => held.push((party, permit)),
                            Some(Err(_)) => {}
                            None => waiting.push((party, entering)),
                        }
                    }
                    1 if !held.is_empty() => drop(held.swap_remove(usize::from(party) % held.len())),
                    _ if !waiting.is_empty() => drop(waiting.swap_remove(usize::from(party) % waiting.len())),
                    _ => {}
                }
                let mut still = Vec::new();
                for (party, mut entering) in waiting {
                    match entering.as_mut().now_or_never() {
                        Some(Ok(permit)) => held.push((party, permit)),
                        Some(Err(_)) => {}
                        None => still.push((party, entering)),
                    }
                }
                waiting = still;
                let load = admission.load();
                assert_eq!((load.taken, load.waiting), (held.len(), waiting.len()));
                assert!(held.len() <= 3 && (0..4).all(|party| held.iter().filter(|(of, _)| *of == party).count() <= 2));
                // Those who wait do so because there is no place, or because their party has its share.
                assert!(waiting.is_empty() || held.len() == 3 || waiting.iter().all(|(party, _)| held.iter().filter(|(of, _)| of == party).count() == 2));
            }
            drop((held, waiting));
            assert!(admission.0.state.lock().parties.is_empty());
            assert_eq!(admission.load().taken, 0);
        });
    }
}
