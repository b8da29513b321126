//! Frames of `wxrelay top`, from snapshots.

use std::time::Duration;

use tokio::time::Instant;

use super::digest::Digest;
use super::frame::{Frame, Snapshot};
use super::view::{Sort, View};
use crate::admin::{AccountOverview, QueueTotals, Status, TargetOverview};
use crate::cli::display::{self, TimeArgs, Zone};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::DeliveryState;
use crate::queue::view::{Counts, DeliverySummary, EventSummary};

fn snapshot(at: Instant, delivered: u32, targets: usize) -> Snapshot {
    let counts = Counts { pending: 2, ..Counts::default() };
    let target = |number: usize| TargetOverview {
        name: format!("target-{number}"),
        configured: true,
        paused: number == 1,
        counts: Counts { dead: u64::from(number == 2), ..counts },
        oldest_pending: (number == 3).then_some(UnixMillis(0)),
    };
    let metrics = format!(
        "wxrelay_pushes_total{{account=\"shop\",kind=\"text\",result=\"accepted\"}} {delivered}\n\
         wxrelay_pushes_total{{account=\"shop\",kind=\"none\",result=\"signature\"}} 2\n\
         wxrelay_deliveries_total{{target=\"target-4\",outcome=\"delivered\"}} {delivered}\n\
         wxrelay_target_up{{target=\"target-0\"}} 0\n"
    );
    let [name, path, mode, app_id] = ["shop", "/wx", "secure", "wx1"].map(str::to_owned);
    let status = Status {
        version: "1.2.3".to_owned(),
        started_at: UnixMillis(0),
        uptime_seconds: 3720,
        generation: 1,
        config_sha256: String::new(),
        config_since: None,
        needs_restart: Vec::new(),
        warnings: Vec::new(),
        store: String::new(),
        listen: Vec::new(),
        accounts: vec![AccountOverview { name, path, mode, app_id }],
        targets: Vec::new(),
        ready: true,
        not_ready_because: None,
        clock: "agrees".to_owned(),
        queue: QueueTotals { events: 7, bytes: 1 << 20, counts, ..QueueTotals::default() },
        replicas: Vec::new(),
    };
    let event = EventSummary {
        id: EventId(1),
        received_at: UnixMillis(1_795_161_600_120),
        account: "shop".to_owned(),
        msg_type: "event".to_owned(),
        event: "CLICK".to_owned(),
        event_key: "菜单_订单查询_".repeat(6),
        from: String::new(),
        deliveries: vec![DeliverySummary { target: "crm".to_owned(), state: DeliveryState::Dead, attempts: 1 }],
    };
    let targets = (0..targets).rev().map(target).collect();
    Snapshot {
        at,
        status,
        targets,
        digest: Digest::new(&metrics),
        replicas: None,
        events: vec![event; 5],
        checks: Vec::new(),
    }
}

fn frame(
    now: &Snapshot,
    before: Option<&Snapshot>,
    view: &mut View,
    width: Option<usize>,
    height: usize,
) -> Vec<String> {
    let settings = display::Settings { width, color: false, zone: Zone::new(TimeArgs { utc: true }) };
    let frame = Frame { now, before, latencies: &now.digest.latencies, settings: &settings };
    let lines = frame.lines(view, height);
    assert!(lines.iter().all(|line| width.is_none_or(|width| line.width() <= width)), "{lines:?}");
    lines.iter().map(|line| line.encode(false)).collect()
}

/// The targets of a frame, in its order.
fn targets(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.split(' ').next()?.strip_prefix("target-")).collect()
}

#[test]
fn rates_are_those_since_the_previous_snapshot() {
    let start = Instant::now();
    let (before, now) = (snapshot(start, 10, 5), snapshot(start + Duration::from_secs(2), 15, 5));
    let lines = frame(&now, Some(&before), &mut View::default(), Some(80), 24);
    assert!(lines[0].starts_with("wxrelay 1.2.3  ready  up 1h 2m"), "{lines:?}");
    let words = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {lines:?}"));
        line.split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(words("shop"), ["shop", "secure", "2.5", "15", "0", "2", "signature", "2"]);
    assert_eq!(words("target-0"), ["target-0", "DOWN", "0.0", "0.0", "2", "-", "0", "0"]);
    assert_eq!(words("target-4"), ["target-4", "up", "2.5", "0.0", "2", "-", "0", "0"]);
    assert_eq!(words("08:00:00")[..2], ["08:00:00", "CLICK"]);
    assert!(words("08:00:00").ends_with(&["crm", "dead"]), "{lines:?}");
    let fell = frame(&before, Some(&now), &mut View::default(), Some(80), 24).join("\n");
    assert!(fell.contains(" - "), "a count that fell is no rate");
}

#[test]
fn targets_in_trouble_are_first_and_then_those_with_the_most_attempts() {
    let start = Instant::now();
    let (before, now) = (snapshot(start, 10, 7), snapshot(start + Duration::from_secs(2), 15, 7));
    let order = |sort: Sort| {
        let mut view = View::default();
        view.sort = sort;
        targets(&frame(&now, Some(&before), &mut view, Some(80), 30)).join(" ")
    };
    assert_eq!(order(Sort::Trouble), "0 1 3 2 4 5 6", "down, paused, waiting long, dead letters, rate, name");
    assert_eq!(order(Sort::Rate), "4 0 1 2 3 5 6");
    assert_eq!(order(Sort::Oldest), "3 0 1 2 4 5 6");
    assert_eq!(order(Sort::Dead), "2 0 1 3 4 5 6");
    assert_eq!(order(Sort::Name), "0 1 2 3 4 5 6");
}

#[test]
fn what_needs_a_hand_is_above_the_tables() {
    let mut now = snapshot(Instant::now(), 10, 5);
    let check =
        |target: usize| serde_json::json!({ "severity": "page", "subject": format!("t{target}"), "text": "down" });
    now.checks = (0..4).map(check).collect();
    let lines = frame(&now, None, &mut View::default(), Some(80), 24);
    assert_eq!(lines[3..7], ["! t0  down", "! t1  down", "! t2  down", "! t3  down"]);
    now.checks.extend((4..9).map(check));
    let lines = frame(&now, None, &mut View::default(), Some(80), 24);
    assert_eq!((&*lines[6], &*lines[7]), ("! t3  down", ".. and 5 more: wxrelay checks"));
    assert!(!frame(&now, None, &mut View::default(), Some(80), 10).iter().any(|line| line.starts_with('!')));
}

#[test]
fn a_frame_of_200_targets_fits_its_screen_and_scrolls() {
    let many = snapshot(Instant::now(), 10, 200);
    for (width, height) in [(80, 24), (120, 40), (40, 10), (20, 3), (0, 0)] {
        assert!(frame(&many, None, &mut View::default(), Some(width), height).len() <= height, "{width}x{height}");
    }
    let mut view = View::default();
    let lines = frame(&many, None, &mut view, Some(80), 24);
    assert_eq!((lines.len(), targets(&lines).len()), (24, 9), "{lines:#?}");
    assert!(lines.iter().any(|line| line == ".. 1 to 9 of 200 targets"), "{lines:#?}");
    assert!(lines.last().is_some_and(|line| line.ends_with("q end")), "{lines:#?}");
    view.scroll = usize::MAX;
    let end = frame(&many, None, &mut view, Some(80), 24);
    assert!(end.iter().any(|line| line == ".. 192 to 200 of 200 targets"), "{end:#?}");
    assert_eq!((view.scroll, view.page), (191, 9));
    assert_eq!(targets(&frame(&many, None, &mut View::default(), None, usize::MAX)).len(), 200);
}
