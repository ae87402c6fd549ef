//! One test per row of the table, named after it.

use super::*;

/// A and B run with `size` pods each, B takes what the percentage says.
fn canary(percent: Option<u8>, size: u32) -> Scene {
    let share = percent.map_or(10_000, |percent| u16::from(percent) * 100);
    Scene::new("b", percent, size)
        .stable("a")
        .revision("a", size, size)
        .revision("b", share_pods(share, size), share_pods(share, size))
        .route("a", "b", share, size)
}

fn share_pods(share: u16, size: u32) -> u32 {
    Share::from_parts(share).pods_of(size).max(1)
}

fn steady(percent: Option<u8>, size: u32) -> Scene {
    Scene::new("a", percent, size).stable("a").revision("a", size, size).route("a", "", 0, size)
}

#[test]
fn no_stable_begins_with_the_empty_record() {
    let plan = Scene::new("a", Some(10), 3).plan();
    assert_eq!(plan.record, Some(Record { revision: String::new(), cause: RecordCause::Begin }));
    assert_eq!(plan.create.as_deref(), Some("a"));
    assert_eq!(plan.grow, pods([("a", 3)]));
    assert_eq!(
        (plan.route.canary.as_deref(), plan.route.share, plan.route.stable),
        (Some("a"), 10_000, None)
    );
    assert_eq!(plan.rollout.phase, Phase::First);
}

#[test]
fn no_stable_is_recorded_with_the_first_ready_pod() {
    let scene = Scene::new("a", Some(10), 3).stable("").revision("a", 3, 0).route("", "a", 10_000, 0);
    assert_eq!(scene.plan().record, None, "nothing is ready yet");
    let scene = Scene::new("a", Some(10), 3).stable("").revision("a", 3, 1).route("", "a", 10_000, 0);
    assert_eq!(scene.plan().record, Some(Record { revision: "a".to_owned(), cause: RecordCause::First }));
}

#[test]
fn no_stable_and_the_spec_changes_is_replaced_at_once() {
    let scene = Scene::new("b", None, 2).stable("").revision("a", 2, 0).route("", "a", 10_000, 0);
    let plan = scene.plan();
    assert_eq!(plan.create.as_deref(), Some("b"));
    assert_eq!(plan.grow, pods([("b", 2)]), "b does not wait for a to go");
    assert_eq!(plan.route.canary.as_deref(), Some("b"));
    let plan = scene.carried_out().plan();
    assert_eq!(plan.delete, names(["a"]));
}

#[test]
fn no_stable_but_the_replaced_revision_became_ready_makes_it_stable() {
    let scene = Scene::new("b", Some(10), 2).stable("").revision("a", 2, 1).route("", "a", 10_000, 0);
    assert_eq!(scene.plan().record, Some(Record { revision: "a".to_owned(), cause: RecordCause::First }));
}

#[test]
fn no_stable_and_no_surge_the_next_revision_waits_for_the_room_of_the_replaced() {
    let scene = Scene::new("b", None, 2)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("")
        .revision("a", 2, 0)
        .route("", "a", 10_000, 0);
    let scene = scene.carried_out();
    let plan = scene.plan();
    assert_eq!((plan.delete, plan.grow), (names(["a"]), pods([])));
    assert_eq!(scene.carried_out().plan().grow, pods([("b", 2)]));
}

#[test]
fn target_is_stable_has_everything_and_the_percentage_waits() {
    for percent in [None, Some(0), Some(10), Some(100)] {
        let plan = steady(percent, 2).plan();
        assert_eq!((plan.route.canary, plan.route.share), (None, 0), "{percent:?}");
        assert!(
            plan.grow.is_empty() && plan.shrink.is_empty() && plan.delete.is_empty() && plan.record.is_none()
        );
        assert_eq!(plan.rollout.nothing_to_split, percent.is_some_and(|percent| percent < 100));
    }
}

#[test]
fn promotion_raises_the_share_with_the_ready_pods() {
    let scene = Scene::new("b", None, 3).stable("a").revision("a", 3, 3).route("a", "", 0, 3);
    let plan = scene.plan();
    assert_eq!(plan.grow, pods([("b", 3)]));
    assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 10_000));
    for (ready, in_force) in [(0, "0"), (1, "33.33"), (2, "66.66"), (3, "100")] {
        let scene = Scene::new("b", None, 3)
            .stable("a")
            .revision("a", 3, 3)
            .revision("b", 3, ready)
            .route("a", "b", 10_000, 3);
        let plan = scene.plan();
        assert_eq!(plan.rollout.in_force.to_string(), in_force);
        assert_eq!(plan.record.is_some(), ready == 3, "recorded with all pods only");
        assert!(plan.shrink.is_empty() && plan.delete.is_empty(), "a keeps its pods to the end");
        if ready < 3 {
            assert!(
                plan.rollout
                    .waiting
                    .unwrap()
                    .1
                    .contains(&format!("waiting for {} of 3 pods of b", 3 - ready))
            );
        }
    }
}

#[test]
fn promotion_is_one_write_then_the_old_revision_is_drained_and_deleted() {
    let scene = canary(None, 3);
    let plan = scene.plan();
    assert_eq!(plan.record, Some(Record { revision: "b".to_owned(), cause: RecordCause::Promoted }));
    let scene = scene.stable("b");
    let plan = scene.plan();
    assert_eq!(plan.route.stable.as_deref(), Some("b"));
    assert_eq!((plan.route.canary.as_deref(), plan.route.revisions.len()), (None, 1));
    assert!(plan.delete.is_empty(), "the routers still use the former route");
    assert!(plan.grow.is_empty() && plan.shrink.is_empty(), "b's pods stay as they are");
    let mut scene = scene.carried_out();
    assert_eq!(scene.plan().delete, names(["a"]));
    for router in &mut scene.situation.routers {
        router.ack.as_mut().unwrap().revisions.get_mut("a").unwrap().in_flight = 1;
    }
    assert!(scene.plan().delete.is_empty(), "a request of a is in flight");
    for router in &mut scene.situation.routers {
        router.acknowledged_at = Some(now() - SignedDuration::from_secs(60));
    }
    assert_eq!(scene.plan().delete, names(["a"]), "its timeout has passed");
}

#[test]
fn promotion_waits_for_every_live_router() {
    for change in [
        (|router: &mut RouterView| router.ack = None) as fn(&mut RouterView),
        |router| router.ack.as_mut().unwrap().generation = 4,
        |router| router.ack.as_mut().unwrap().route_uid = "former".to_owned(),
        |router| router.ack.as_mut().unwrap().revisions.get_mut("b").unwrap().share = 9_999,
        |router| drop(router.ack.as_mut().unwrap().revisions.get_mut("b").unwrap().endpoints.pop()),
    ] {
        let mut scene = canary(None, 3);
        change(&mut scene.situation.routers[1]);
        assert_eq!(scene.plan().record, None);
    }
}

#[test]
fn a_canary_takes_its_share_and_its_part_of_the_pods() {
    let scene = Scene::new("b", Some(10), 10).stable("a").revision("a", 10, 10).route("a", "", 0, 10);
    let plan = scene.plan();
    assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 1_000));
    assert_eq!(plan.grow, pods([("b", 1)]));
    assert_eq!(canary(Some(10), 10).plan().rollout.in_force.to_string(), "10");
    assert_eq!(canary(Some(50), 10).plan().rollout.target_pods, 5);
    assert_eq!(canary(Some(50), 10).plan().record, None);
    assert_eq!(
        canary(Some(99), 1).plan().rollout.in_force.to_string(),
        "99",
        "one pod is enough for any share"
    );
}

#[test]
fn a_canary_without_surge_takes_its_part_of_the_pods_from_stable() {
    let scene = Scene::new("b", Some(50), 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 4, 4)
        .route("a", "", 0, 4);
    let plan = scene.plan();
    assert_eq!((plan.route.share, plan.route.stable_count), (5_000, 3), "one pod at a time may be missing");
    let end = scene.settled();
    assert_eq!(
        (end.situation.revisions["a"].replicas, end.situation.revisions["b"].replicas),
        (Some(2), Some(2))
    );
    assert_eq!(end.plan().rollout.in_force.to_string(), "50");
}

#[test]
fn where_surge_leaves_no_room_for_the_share_status_says_so() {
    let scene =
        Scene::new("b", Some(51), 2).surge(Bound::Pods(0), Bound::Pods(1)).stable("a").revision("a", 2, 2);
    let rollout = scene.route("a", "", 0, 2).settled().plan().rollout;
    assert_eq!(rollout.in_force.to_string(), "50");
    let (reason, text) = rollout.waiting.unwrap();
    assert_eq!(reason, serin_crds::reasons::WEIGHT_LIMITED);
    assert!(
        text.starts_with("maxSurge leaves room for 1 of 2 pods of b beside 1 of the stable revision"),
        "{text}"
    );
}

#[test]
fn at_zero_the_canary_runs_without_requests() {
    let scene = Scene::new("b", Some(0), 5).stable("a").revision("a", 5, 5).route("a", "", 0, 5);
    let plan = scene.plan();
    assert_eq!(plan.grow, pods([("b", 1)]));
    assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 0), "it can be pinned");
    assert_eq!(plan.rollout.phase, Phase::AtZero);
    let down =
        Scene::new("b", Some(0), 2).stable("a").revision("a", 2, 0).revision("b", 1, 1).route("a", "b", 0, 2);
    assert_eq!(down.plan().route.share, 0, "never a fallback");
}

#[test]
fn at_zero_without_surge_the_canary_takes_one_pod_of_stable_but_never_the_last() {
    let without_surge = |size| {
        let scene = Scene::new("b", Some(0), size).surge(Bound::Pods(0), Bound::Pods(1));
        let end = scene.stable("a").revision("a", size, size).route("a", "", 0, size).settled();
        (end.situation.revisions["a"].replicas, end.situation.revisions["b"].replicas)
    };
    assert_eq!(without_surge(4), (Some(3), Some(1)));
    assert_eq!(without_surge(1), (Some(1), Some(0)), "b would not serve, so a has to");
}

#[test]
fn a_held_canary_is_as_at_zero_whatever_the_percentage() {
    for percent in [None, Some(50), Some(100)] {
        let mut scene = canary(percent, 4);
        scene.wishes.held = true;
        let plan = scene.plan();
        assert_eq!((plan.route.share, plan.rollout.phase), (0, Phase::Held));
        assert_eq!(plan.record, None);
    }
}

#[test]
fn a_hold_in_the_middle_of_a_promotion_without_surge_grows_stable_back() {
    let mut scene = Scene::new("b", None, 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 1, 1)
        .revision("b", 3, 3)
        .route("a", "b", 10_000, 1);
    scene.wishes.held = true;
    let plan = scene.plan();
    assert_eq!((plan.route.share, plan.rollout.phase), (0, Phase::Held), "a has a pod, so at once");
    let end = scene.settled();
    assert_eq!(
        (end.situation.revisions["a"].replicas, end.situation.revisions["b"].replicas),
        (Some(3), Some(1))
    );
}

#[test]
fn a_plan_gives_the_share_while_no_percentage_is_set() {
    let mut scene = canary(None, 4);
    scene.wishes.plan_share = Some(Share::from_percent(25));
    assert_eq!(scene.plan().route.share, 2_500);
    assert_eq!(scene.plan().record, None);
    scene.wishes.percent = Some(50);
    assert_eq!(scene.plan().route.share, 5_000, "a person's percentage goes first");
}

#[test]
fn a_mirror_needs_pods_but_gets_no_share() {
    let mut scene = Scene::new("b", Some(0), 10).stable("a").revision("a", 10, 10).route("a", "", 0, 10);
    scene.wishes.mirror = Share::from_percent(20);
    let plan = scene.plan();
    assert_eq!((plan.grow, plan.route.share), (pods([("b", 2)]), 0));
}

#[test]
fn a_mirror_without_surge_does_not_take_the_pods_that_answer() {
    let mut scene = Scene::new("b", Some(0), 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 4, 4)
        .route("a", "", 0, 4);
    scene.wishes.mirror = Share::ALL;
    let end = scene.settled();
    assert_eq!(
        (end.situation.revisions["a"].replicas, end.situation.revisions["b"].replicas),
        (Some(3), Some(1))
    );
}

#[test]
fn a_patched_percentage_is_written_at_once_and_pods_follow() {
    let mut scene = canary(Some(10), 10);
    scene.wishes.percent = Some(50);
    scene.situation.routers[0].ack = None;
    let plan = scene.plan();
    assert_eq!(plan.route.share, 5_000, "whoever is silent");
    assert_eq!(plan.grow, pods([("b", 5)]));
}

#[test]
fn a_lowered_percentage_is_written_at_once_and_the_shrink_waits_for_the_routers() {
    let mut scene = canary(Some(50), 10);
    scene.wishes.percent = Some(10);
    let plan = scene.plan();
    assert_eq!(plan.route.share, 1_000);
    assert!(plan.shrink.is_empty(), "no router uses the lower share yet");
    let mut waiting = scene.carried_out();
    assert_eq!(waiting.plan().shrink, pods([("b", 1)]));
    waiting.situation.routers[1].ack = None;
    assert!(waiting.plan().shrink.is_empty());
    waiting.wishes.release_hold = Some(waiting.situation.route.as_ref().unwrap().generation);
    assert_eq!(waiting.plan().shrink, pods([("b", 1)]), "a person has released it");
    waiting.wishes.release_hold = Some(3);
    assert!(waiting.plan().shrink.is_empty(), "released for another generation");
}

#[test]
fn a_percentage_lowered_after_stable_was_shrunk_to_nothing_makes_room_for_it() {
    let scene = Scene::new("b", Some(10), 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 0, 0)
        .revision("b", 4, 4)
        .route("a", "b", 10_000, 0);
    let scene = scene.carried_out();
    assert_eq!(scene.plan().shrink, pods([("b", 3)]), "one pod may be missing");
    let end = scene.settled();
    assert_eq!(
        (end.situation.revisions["a"].replicas, end.situation.revisions["b"].replicas),
        (Some(3), Some(1))
    );
    assert_eq!(end.plan().rollout.in_force.to_string(), "10");
}

#[test]
fn a_patched_size_grows_at_once_and_shrinks_acknowledged() {
    let mut scene = steady(None, 2);
    scene.wishes.size = 4;
    let plan = scene.plan();
    assert_eq!((plan.grow, plan.route.size, plan.route.stable_count), (pods([("a", 4)]), 4, 4));
    scene.wishes.size = 1;
    assert!(scene.plan().shrink.is_empty());
    assert_eq!(scene.carried_out().plan().shrink, pods([("a", 1)]));
}

#[test]
fn a_patched_size_without_surge_goes_on_in_batches() {
    let scene = |size| {
        Scene::new("b", Some(50), size)
            .surge(Bound::Pods(0), Bound::Pods(1))
            .stable("a")
            .revision("a", 2, 2)
            .revision("b", 2, 2)
            .route("a", "b", 5_000, 2)
    };
    for (size, half) in [(8, 4), (2, 1)] {
        let end = scene(size).settled();
        let replicas = |name: &str| end.situation.revisions[name].replicas;
        assert_eq!((replicas("a"), replicas("b")), (Some(half), Some(half)), "N = {size}");
    }
}

#[test]
fn a_change_in_mid_canary_takes_the_old_share_first() {
    let mut scene = canary(Some(50), 2);
    scene.wishes.target = "c".to_owned();
    scene.wishes.percent = Some(10);
    let plan = scene.plan();
    assert_eq!(
        (plan.route.canary.as_deref(), plan.route.share),
        (Some("b"), 0),
        "with the default surge at once"
    );
    assert_eq!(plan.create.as_deref(), Some("c"));
    assert_eq!(plan.grow, pods([("c", 1)]), "c's pods start where there is room");
    assert_eq!(plan.rollout.phase, Phase::Leaving);

    let scene = scene.carried_out().all_ready();
    let mut one_is_behind = scene.clone();
    one_is_behind.situation.routers[0].ack.as_mut().unwrap().generation -= 1;
    assert_eq!(one_is_behind.plan().route.canary.as_deref(), Some("b"), "c has to wait");
    let plan = scene.plan();
    assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("c"), 1_000));
    assert!(plan.delete.is_empty(), "the routers still know b");
    assert_eq!(scene.carried_out().plan().delete, names(["b"]));
}

#[test]
fn a_change_in_mid_canary_takes_the_old_share_whoever_is_silent() {
    for forget in [
        |router: &mut RouterView| router.ack = None,
        |router: &mut RouterView| {
            router.ack.as_mut().unwrap().revisions.get_mut("a").unwrap().endpoints.clear();
        },
    ] {
        let mut scene = canary(Some(50), 2);
        scene.wishes.target = "c".to_owned();
        forget(&mut scene.situation.routers[1]);
        let plan = scene.plan();
        assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 0));
    }
}

#[test]
fn a_change_in_mid_canary_gives_the_room_of_the_new_pods_to_stable() {
    // While b leaves, the size was raised and the surge lowered: c has the pod that a needs.
    let scene = Scene::new("c", None, 2)
        .surge(Bound::Pods(1), Bound::Pods(0))
        .stable("a")
        .revision("a", 1, 1)
        .revision("b", 1, 1)
        .revision("c", 1, 1)
        .route("a", "b", 5_000, 2);
    let end = scene.settled();
    assert_eq!(end.situation.stable, StableRecord::Named("c".to_owned()));
}

#[test]
fn a_change_in_mid_canary_keeps_the_share_that_stable_cannot_carry() {
    // Without surge, half way of a promotion: a has 2 of 4, b the other 2.
    let scene = Scene::new("c", Some(10), 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 2, 2)
        .revision("b", 2, 2)
        .route("a", "b", 10_000, 2);
    let plan = scene.plan();
    assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 2_500), "N - u - k_S = 1 of 4");
    assert!(plan.grow.is_empty(), "no room");
    let scene = scene.carried_out();
    assert_eq!(scene.plan().shrink, pods([("b", 1)]));
    let end = scene.settled();
    assert_eq!(end.situation.route.as_ref().unwrap().spec.canary.as_deref(), Some("c"));
    assert!(!end.situation.revisions["b"].is_running());
}

#[test]
fn back_to_stable_cancels_the_canary_and_leaves_stable_alone() {
    let mut scene = canary(Some(50), 2);
    scene.wishes.target = "a".to_owned();
    let plan = scene.plan();
    assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 0));
    assert!(plan.grow.is_empty() && plan.shrink.is_empty() && plan.create.is_none());
    let scene = scene.carried_out();
    assert_eq!(scene.plan().route.canary, None);
    let scene = scene.carried_out();
    assert_eq!(scene.plan().delete, names(["b"]));
    assert_eq!(scene.settled().situation.revisions["a"].replicas, Some(2));
}

#[test]
fn back_to_stable_grows_it_back_first_where_it_had_been_shrunk_even_to_nothing() {
    // All may be missing, so the formula alone would let b go at once and nobody would answer.
    let scene = Scene::new("a", Some(50), 2)
        .surge(Bound::Pods(0), Bound::Pods(2))
        .stable("a")
        .revision("a", 0, 0)
        .revision("b", 2, 2)
        .route("a", "b", 10_000, 0);
    let mut waiting = scene.clone();
    for _ in 0..5 {
        waiting = waiting.carried_out();
        let route = &waiting.situation.route.as_ref().unwrap().spec;
        assert!(
            route.canary.as_deref() == Some("b") && route.share > 0,
            "no pod of a is ready yet: {route:?}"
        );
        assert!(!waiting.situation.revisions["b"].ready.is_empty());
    }
    let end = waiting.settled();
    assert_eq!(end.situation.route.as_ref().unwrap().spec.canary, None);
    assert_eq!(end.situation.revisions["a"].replicas, Some(2));
}

#[test]
fn no_progress_is_reported_and_takes_nothing() {
    let mut scene = Scene::new("b", Some(50), 2)
        .stable("a")
        .revision("a", 2, 2)
        .revision("b", 1, 0)
        .route("a", "b", 5_000, 2);
    assert!(!scene.plan().rollout.deadline_exceeded);
    assert!(scene.plan().look_again.is_some());
    scene.situation.revisions.get_mut("b").unwrap().created_at = Some(now() - SignedDuration::from_secs(600));
    let plan = scene.plan();
    assert!(plan.rollout.deadline_exceeded);
    assert_eq!(plan.route.share, 5_000, "reported, not latched");
    assert_eq!(plan.rollout.in_force, Share::NONE);
}

#[test]
fn a_canary_that_loses_pods_falls_back_in_share_only() {
    let scene = Scene::new("b", Some(50), 4)
        .stable("a")
        .revision("a", 4, 4)
        .revision("b", 2, 1)
        .route("a", "b", 5_000, 4);
    let plan = scene.plan();
    assert_eq!((plan.route.share, plan.rollout.in_force.to_string().as_str()), (5_000, "25"));
    assert!(plan.shrink.is_empty() && plan.delete.is_empty());
}

#[test]
fn a_canary_without_surge_that_loses_pods_gives_their_room_back_to_stable() {
    let scene = Scene::new("b", None, 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 1, 1)
        .revision("b", 3, 0)
        .route("a", "b", 10_000, 1);
    let plan = scene.plan();
    assert_eq!((plan.route.stable_count, plan.route.share), (3, 10_000));
    let scene = scene.carried_out();
    assert_eq!(
        scene.plan().shrink,
        pods([("b", 1)]),
        "three broken pods would leave a alone with a quarter of the size"
    );
    assert_eq!(scene.carried_out().plan().grow, pods([("a", 3)]));
}

#[test]
fn stable_without_endpoints_makes_the_canary_carry_everything() {
    let scene = Scene::new("b", Some(10), 4)
        .stable("a")
        .revision("a", 4, 0)
        .revision("b", 1, 1)
        .route("a", "b", 1_000, 4);
    let plan = scene.plan();
    assert_eq!(plan.grow, pods([("b", 4)]));
    assert_eq!(plan.rollout.in_force, Share::ALL);
    let back = Scene::new("b", Some(10), 4)
        .stable("a")
        .revision("a", 4, 3)
        .revision("b", 4, 4)
        .route("a", "b", 1_000, 4);
    assert!(back.plan().shrink.is_empty(), "until a is back whole");
    let back = Scene::new("b", Some(10), 4)
        .stable("a")
        .revision("a", 4, 4)
        .revision("b", 4, 4)
        .route("a", "b", 1_000, 4);
    assert_eq!(back.plan().shrink, pods([("b", 1)]));
}

#[test]
fn stable_without_endpoints_and_without_surge_lends_its_room_to_the_canary() {
    let scene = Scene::new("b", Some(10), 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 3, 0)
        .revision("b", 1, 1)
        .route("a", "b", 1_000, 3);
    let scene = scene.carried_out();
    assert_eq!(scene.plan().shrink, pods([("a", 2)]));
    let scene = scene.carried_out();
    assert_eq!(scene.plan().grow, pods([("b", 2)]));
    let end = scene.settled();
    assert_eq!(
        (end.situation.revisions["a"].replicas, end.situation.revisions["b"].replicas),
        (Some(3), Some(1)),
        "a is back"
    );
}

#[test]
fn the_only_revision_that_has_endpoints_is_not_deleted() {
    // b was recorded as stable and lost every pod before a was deleted.
    let scene =
        Scene::new("b", None, 2).stable("b").revision("a", 2, 2).revision("b", 2, 0).route("b", "", 0, 2);
    assert!(scene.plan().delete.is_empty());
}

#[test]
fn a_target_that_gets_no_requests_is_no_reason_to_delete_who_could_answer() {
    let mut scene =
        Scene::new("c", Some(0), 2).stable("a").revision("a", 2, 0).revision("b", 2, 2).revision("c", 1, 1);
    scene = scene.route("a", "c", 0, 2);
    assert!(scene.plan().delete.is_empty());
    scene.wishes.percent = Some(10);
    assert_eq!(scene.carried_out().plan().delete, names(["b"]), "now c answers");
}

#[test]
fn the_only_revision_that_has_endpoints_makes_room_for_stable_where_there_is_none() {
    let scene = Scene::new("b", None, 4)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("b")
        .revision("a", 4, 4)
        .revision("b", 0, 0)
        .route("b", "", 0, 4);
    let plan = scene.plan();
    assert_eq!((plan.shrink, plan.delete), (pods([("a", 3)]), names([])));
    let end = scene.settled();
    assert_eq!(end.situation.revisions["b"].replicas, Some(4));
    assert!(!end.situation.revisions["a"].is_running());
}

#[test]
fn the_record_that_moves_in_mid_canary_leaves_the_greater_share_where_it_is() {
    // A person wrote c into the record while b took 10 % beside a.
    let scene = Scene::new("c", None, 4)
        .stable("c")
        .revision("a", 4, 4)
        .revision("b", 1, 1)
        .revision("c", 0, 0)
        .route("a", "b", 1_000, 4);
    let plan = scene.plan();
    assert_eq!(
        (plan.route.stable.as_deref(), plan.route.canary.as_deref(), plan.route.share),
        (Some("c"), Some("a"), 9_000)
    );
    let end = scene.settled();
    assert!(!end.situation.revisions["a"].is_running() && !end.situation.revisions["b"].is_running());
}

#[test]
fn the_record_that_moves_away_from_what_serves_lets_it_leave_as_the_other_grows() {
    // A person set the record back from b to a, of which nothing runs any more.
    let mut scene =
        Scene::new("a", None, 2).stable("a").revision("a", 0, 0).revision("b", 2, 2).route("b", "", 0, 2);
    scene.situation.revisions.get_mut("a").unwrap().replicas = None;
    let plan = scene.plan();
    assert_eq!(
        (plan.route.stable.as_deref(), plan.route.canary.as_deref(), plan.route.share),
        (Some("a"), Some("b"), 10_000)
    );
    assert_eq!(plan.grow, pods([("a", 2)]));
    assert!(plan.delete.is_empty());
    let end = scene.settled();
    assert_eq!(end.situation.route.unwrap().spec.canary, None);
    assert!(!end.situation.revisions["b"].is_running());
}

#[test]
fn without_surge_canary_and_promotion_go_in_batches() {
    let start = Scene::new("b", None, 5)
        .surge(Bound::Pods(0), Bound::Percent(20))
        .stable("a")
        .revision("a", 5, 5)
        .route("a", "", 0, 5);
    let plan = start.plan();
    assert_eq!((plan.route.stable_count, plan.route.share), (4, 10_000));
    assert!(!plan.grow.contains_key("b"), "a has all the room");
    let scene = start.clone().carried_out();
    assert_eq!(scene.plan().shrink, pods([("a", 4)]));
    let scene = scene.carried_out();
    assert_eq!(scene.plan().grow, pods([("b", 1)]));
    let end = start.settled();
    assert_eq!(end.situation.stable, StableRecord::Named("b".to_owned()));
    assert_eq!(end.situation.revisions["b"].replicas, Some(5));
    assert!(!end.situation.revisions["a"].is_running());
}

#[test]
fn zero_waits_for_stable_where_the_rollout_has_shrunk_it_to_nothing() {
    let scene = Scene::new("b", Some(0), 2)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 0, 0)
        .revision("b", 2, 2)
        .route("a", "b", 10_000, 0);
    let plan = scene.plan();
    assert_eq!(plan.route.share, 10_000, "nobody else could answer");
    let end = scene.settled();
    assert_eq!(end.situation.route.unwrap().spec.share, 0);
    assert_eq!(end.situation.revisions["a"].replicas, Some(1), "N + e - t");
}

#[test]
fn zero_waits_until_a_pod_of_stable_is_ready_not_only_asked_for() {
    let mut scene = Scene::new("b", Some(0), 2)
        .surge(Bound::Pods(0), Bound::Pods(1))
        .stable("a")
        .revision("a", 0, 0)
        .revision("b", 2, 2)
        .route("a", "b", 10_000, 0);
    for _ in 0..5 {
        scene = scene.carried_out();
        assert_eq!(scene.plan().route.share, 10_000);
    }
    assert_eq!(scene.situation.revisions["a"].replicas, Some(1), "it has been asked for long since");
    let ready = scene.all_ready();
    assert_eq!(ready.plan().route.share, 0);
    let mut one_does_not_see_it = ready;
    one_does_not_see_it.situation.routers[0]
        .ack
        .as_mut()
        .unwrap()
        .revisions
        .get_mut("a")
        .unwrap()
        .endpoints
        .clear();
    assert_eq!(one_does_not_see_it.plan().route.share, 10_000);
}

#[test]
fn zero_and_a_cancel_do_not_wait_for_a_silent_router_where_stable_has_pods() {
    for (target, percent) in [("b", Some(0)), ("a", None), ("c", None)] {
        let mut scene = Scene::new(target, percent, 4)
            .surge(Bound::Pods(0), Bound::Pods(1))
            .stable("a")
            .revision("a", 3, 3)
            .revision("b", 1, 1)
            .route("a", "b", 2_500, 3);
        scene.situation.routers[1].ack = None;
        let plan = scene.plan();
        assert_eq!((plan.route.canary.as_deref(), plan.route.share), (Some("b"), 0), "{target}");
    }
}

#[test]
fn zero_does_not_wait_for_a_stable_that_died_by_itself() {
    let scene = Scene::new("b", Some(0), 2)
        .stable("a")
        .revision("a", 2, 0)
        .revision("b", 2, 2)
        .route("a", "b", 10_000, 2);
    assert_eq!(scene.plan().route.share, 0, "what a person patches is written at once");
}

#[test]
fn nobody_knows_the_stable_revision_nothing_moves() {
    let scene = Scene::new("b", None, 2).revision("a", 2, 2).revision("b", 2, 2);
    let standstill = plan(&scene.wishes, &scene.situation, now()).unwrap_err();
    assert_eq!(standstill, Standstill::StableUnknown { candidates: vec!["a".to_owned(), "b".to_owned()] });
}

#[test]
fn a_lost_record_comes_back_from_its_copies_in_their_order() {
    let a = || Some("a".to_owned());
    let (b, gone) = (|| Some("b".to_owned()), || Some("gone".to_owned()));
    for (copies, expect) in [
        (StableCopies { route: a(), status: b(), promotion: b() }, "a"),
        (StableCopies { route: None, status: a(), promotion: b() }, "a"),
        (StableCopies { route: gone(), status: gone(), promotion: a() }, "a"),
    ] {
        for record in [StableRecord::Missing, StableRecord::Named("gone".to_owned())] {
            let mut scene = Scene::new("b", Some(10), 2).revision("a", 2, 2).revision("b", 1, 1);
            (scene.situation.copies, scene.situation.stable) = (copies.clone(), record);
            let plan = scene.plan();
            assert_eq!(
                plan.record,
                Some(Record { revision: expect.to_owned(), cause: RecordCause::Recovered })
            );
            assert_eq!(plan.route.stable.as_deref(), Some(expect));
        }
    }
}

#[test]
fn a_record_of_another_cluster_without_children_begins_anew() {
    let scene = Scene::new("b", None, 1).stable("restored");
    assert_eq!(scene.plan().record, Some(Record { revision: String::new(), cause: RecordCause::Begin }));
}

#[test]
fn a_record_lost_before_anything_was_stable_is_no_riddle() {
    for record in [StableRecord::Missing, StableRecord::Named("gone".to_owned())] {
        let mut scene = Scene::new("a", None, 2).revision("a", 2, 0).route("", "a", 10_000, 0);
        scene.situation.stable = record;
        assert_eq!(
            scene.plan().record,
            Some(Record { revision: String::new(), cause: RecordCause::Recovered })
        );
        scene = scene.revision("a", 2, 1);
        assert_eq!(scene.plan().record, Some(Record { revision: "a".to_owned(), cause: RecordCause::First }));
    }
}

#[test]
fn where_no_revision_is_left_there_is_nothing_to_lose_and_it_begins_anew() {
    for record in [StableRecord::Missing, StableRecord::Named("gone".to_owned())] {
        let mut scene = Scene::new("b", Some(10), 2).route("gone", "", 0, 2);
        scene.situation.stable = record;
        scene.situation.copies.route = Some("gone".to_owned());
        let plan = scene.plan();
        assert_eq!(plan.record, Some(Record { revision: String::new(), cause: RecordCause::Begin }));
        assert_eq!((plan.route.canary.as_deref(), plan.grow), (Some("b"), pods([("b", 2)])));
    }
}

#[test]
fn a_release_does_not_cut_off_requests_that_a_router_reports() {
    let mut scene = steady(None, 2).revision("b", 2, 2).acknowledged();
    scene.situation.routers[0].ack.as_mut().unwrap().revisions.get_mut("b").unwrap().in_flight = 1;
    scene.situation.routers[1].ack = None;
    assert!(scene.plan().delete.is_empty());
    scene.wishes.release_hold = Some(5);
    assert!(scene.plan().delete.is_empty(), "the first router answers, and b still owes it an answer");
    scene.situation.routers[0].acknowledged_at = Some(now() - SignedDuration::from_secs(60));
    assert_eq!(scene.plan().delete, names(["b"]));
}

#[test]
fn an_acknowledgement_of_a_newer_route_than_the_observed_takes_nothing() {
    let mut scene = steady(None, 2).revision("b", 2, 2).acknowledged();
    assert_eq!(scene.plan().delete, names(["b"]));
    scene.situation.routers[0].ack.as_mut().unwrap().generation = 6;
    assert!(scene.plan().delete.is_empty(), "somebody has written a route that may name b");
}

#[test]
fn old_revisions_are_remembered_up_to_the_limit() {
    let mut scene = steady(None, 1);
    for (index, name) in ["old-1", "old-2", "old-3"].into_iter().enumerate() {
        scene = scene.revision(name, 0, 0);
        let view = scene.situation.revisions.get_mut(name).unwrap();
        view.replicas = None;
        view.created_at = Some(now() - SignedDuration::from_hours(10 - i64::try_from(index).unwrap()));
    }
    scene.wishes.history_limit = 1;
    assert_eq!(scene.plan().forget, names(["old-1", "old-2"]));
}

#[test]
fn a_silent_router_is_named() {
    let mut scene = canary(Some(10), 2);
    scene.situation.routers[1].silent_since = Some(now() - SignedDuration::from_secs(5));
    scene.situation.routers[1].ack = None;
    let rollout = scene.plan().rollout;
    assert_eq!(
        (rollout.silent, rollout.unacknowledged),
        (vec!["router-2".to_owned()], vec!["router-2".to_owned()])
    );
}

#[test]
fn nothing_happens_twice() {
    for scene in [steady(None, 2), canary(Some(10), 2), canary(Some(0), 3)] {
        let again = scene.clone().carried_out();
        assert_eq!(again.situation, scene.situation);
    }
}
