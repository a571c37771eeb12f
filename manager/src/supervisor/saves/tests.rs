use super::*;

fn value(name: &str) -> Key {
    Key::Value(name.to_owned())
}

fn text(text: &str) -> What {
    What::Keep(text.to_owned())
}

fn keep(saves: &mut Saves, name: &str, text: &str) {
    saves.keep(name.to_owned(), Some(text.to_owned()));
}

/// Has the kernel take what is sent next, and tells what that was.
fn take(saves: &mut Saves, now: Instant) -> Vec<(Key, What)> {
    let Some(parcel) = saves.next(now) else {
        return Vec::new();
    };
    let fates = parcel.entries.iter();
    let fates = fates.map(|(key, _)| (key.clone(), Fate::Done)).collect();
    assert_eq!(saves.sent(fates, now), None);
    parcel.entries
}

/// Has the kernel refuse what is sent next.
fn refuse(saves: &mut Saves, now: Instant) -> Option<PutAside> {
    let parcel = saves.next(now).expect("something is sent");
    let fates = parcel.entries.iter();
    let full = || Fate::Refused("full".to_owned());
    let fates = fates.map(|(key, _)| (key.clone(), full())).collect();
    saves.sent(fates, now)
}

#[test]
fn an_exit_is_acknowledged_only_after_what_was_queued_before_is_kept() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "ended 7");
    saves.acknowledge(7, false);
    let name_is_free = saves.pass();
    let first = saves.next(now).expect("the value is sent");
    assert_eq!(first.entries, [(value("a"), text("ended 7"))]);
    assert_eq!(saves.next(now), None, "the kernel has not answered yet");
    saves.sent(vec![(value("a"), Fate::Done)], now);
    assert!(!name_is_free.is_over());
    let acknowledged = take(&mut saves, now);
    let discard = false;
    assert_eq!(
        acknowledged,
        [(Key::Exit(7), What::Acknowledge { discard })]
    );
    assert!(name_is_free.is_over());
    assert!(saves.is_empty());
}

#[test]
fn the_latest_value_of_a_name_is_the_only_one_sent() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "1");
    keep(&mut saves, "b", "1");
    keep(&mut saves, "a", "2");
    assert_eq!(
        take(&mut saves, now),
        [(value("a"), text("2")), (value("b"), text("1"))]
    );
    assert!(saves.is_empty());
}

#[test]
fn a_value_that_is_on_its_way_is_followed_by_the_newer_one() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "1");
    saves.next(now).expect("the first value is sent");
    keep(&mut saves, "a", "2");
    let newer = saves.pass();
    saves.sent(vec![(value("a"), Fate::Done)], now);
    assert!(!newer.is_over());
    assert_eq!(take(&mut saves, now), [(value("a"), text("2"))]);
    assert!(newer.is_over());
}

#[test]
fn a_removal_comes_after_the_save_before_it_and_replaces_one_not_sent() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "1");
    saves.next(now).expect("the value is sent");
    keep(&mut saves, "a", "2");
    saves.keep("a".to_owned(), None);
    saves.sent(vec![(value("a"), Fate::Done)], now);
    assert_eq!(take(&mut saves, now), [(value("a"), What::Remove)]);
    assert!(saves.is_empty());
}

#[test]
fn order_among_values_is_kept_where_it_was_asked_for() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "z", "before");
    saves.then();
    keep(&mut saves, "a", "after");
    keep(&mut saves, "z", "later");
    assert_eq!(take(&mut saves, now), [(value("z"), text("before"))]);
    assert_eq!(
        take(&mut saves, now),
        [(value("a"), text("after")), (value("z"), text("later"))]
    );
}

#[test]
fn a_refused_save_is_sent_again_without_anything_else_changing() {
    let mut saves = Saves::default();
    let start = Instant::now();
    keep(&mut saves, "a", "1");
    saves.acknowledge(7, true);
    assert_eq!(refuse(&mut saves, start), None);
    assert_eq!(saves.next(start), None, "not at once");
    let again = saves.deadline().expect("it is tried again");
    assert_eq!(again, start + AGAIN_MIN);
    assert_eq!(take(&mut saves, again), [(value("a"), text("1"))]);
    assert_eq!(take(&mut saves, again).len(), 1, "the exit behind it");
    assert_eq!(saves.trouble(again + HOLD), None, "it is over");
}

#[test]
fn a_save_that_stays_refused_holds_others_up_for_a_while_and_is_tried_for_ever() {
    let mut saves = Saves::default();
    let start = Instant::now();
    keep(&mut saves, "a", "1");
    saves.acknowledge(7, true);
    let behind = saves.pass();
    let mut now = start;
    let aside = loop {
        if let Some(aside) = refuse(&mut saves, now) {
            break aside;
        }
        assert!(!behind.is_over());
        now = saves.deadline().expect("it is tried again");
    };
    assert!(now >= start + HOLD && now <= start + HOLD + AGAIN_MAX);
    assert!(behind.needs(aside.step), "{aside:?}");
    assert!(aside.reason.contains("keep a: full"), "{aside:?}");
    assert_eq!(take(&mut saves, now).len(), 1, "the exit behind it");
    assert!(behind.is_over());
    let trouble = saves.trouble(now).expect("it is told");
    assert!(trouble.contains(" a for 2 s: full"), "{trouble}");
    // Something newer of the same name holds nobody up.
    keep(&mut saves, "a", "2");
    assert!(refuse(&mut saves, now).is_some());
    for _ in 0..3 {
        now = saves.deadline().expect("it is tried again");
        assert_eq!(refuse(&mut saves, now), None);
    }
    now = saves.deadline().expect("it is tried again");
    assert_eq!(take(&mut saves, now), [(value("a"), text("2"))]);
    assert_eq!((saves.trouble(now), saves.deadline()), (None, None));
}

#[test]
fn what_was_on_its_way_when_the_connection_went_is_sent_on_the_next() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "1");
    keep(&mut saves, "b", "1");
    saves.next(now).expect("both are sent");
    let fates = vec![(value("a"), Fate::Done), (value("b"), Fate::Lost)];
    assert_eq!(saves.sent(fates, now), None);
    assert_eq!(saves.trouble(now + HOLD), None, "nothing was refused");
    assert_eq!(take(&mut saves, now), [(value("b"), text("1"))]);
}

#[test]
fn another_kernel_is_told_of_no_exit_of_the_one_before() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "1");
    saves.acknowledge(7, true);
    saves.forget_exits();
    assert_eq!(take(&mut saves, now).len(), 1);
    assert!(saves.is_empty());
}

#[test]
fn nothing_is_sent_after_everything_is_to_be_forgotten() {
    let mut saves = Saves::default();
    let now = Instant::now();
    keep(&mut saves, "a", "1");
    saves.next(now).expect("it is sent");
    keep(&mut saves, "b", "1");
    saves.clear();
    assert!(saves.is_sending(), "whoever removes it has to wait");
    saves.sent(vec![(value("a"), Fate::Refused(String::new()))], now);
    assert!(!saves.is_sending() && saves.is_empty());
    assert_eq!(saves.next(now + HOLD), None);
}

#[test]
fn the_queue_is_bounded_and_loses_no_name() {
    let mut saves = Saves::default();
    let now = Instant::now();
    for round in 0..10 * MAX_STEPS as u64 {
        keep(&mut saves, &format!("v{round}"), "1");
        saves.acknowledge(round, false);
        saves.then();
    }
    assert!(saves.steps.len() <= MAX_STEPS + 1, "{}", saves.steps.len());
    let everything = saves.pass();
    let mut seen = std::collections::BTreeSet::new();
    while !saves.is_empty() {
        for (key, _) in take(&mut saves, now) {
            if let Key::Exit(serial) = key {
                let name = value(&format!("v{serial}"));
                assert!(seen.contains(&name), "{serial} before its value");
            }
            seen.insert(key);
        }
    }
    assert!(everything.is_over());
    assert_eq!(seen.len(), 20 * MAX_STEPS);
}

#[tokio::test]
async fn whoever_waits_goes_on_in_order_when_all_is_kept() {
    let mut saves = Saves::default();
    keep(&mut saves, "a", "1");
    let pass = saves.pass();
    let early = saves.pass().wait(Duration::from_millis(1)).await;
    assert!(!early);
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiting = vec![tokio::spawn(pass.wait(Duration::from_secs(60)))];
    for number in 0..32 {
        let (pass, order) = (saves.pass(), order.clone());
        waiting.push(tokio::spawn(async move {
            let over = pass.wait(Duration::from_secs(60)).await;
            order.lock().expect("nobody panics").push(number);
            over
        }));
    }
    tokio::task::yield_now().await;
    take(&mut saves, Instant::now());
    for one in waiting {
        assert!(one.await.expect("it ends"));
    }
    let order = order.lock().expect("nobody panics");
    assert!(
        order.is_sorted(),
        "in the order in which they came: {order:?}"
    );
}
