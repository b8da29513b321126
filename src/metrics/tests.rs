//! The series that exist, and when.

use super::*;

#[test]
fn what_is_configured_shows_at_zero_from_the_start() {
    let metrics = Metrics::new();
    let (_account, _target) = (metrics.account("shop"), metrics.target("crm"));
    let text = metrics.render();
    for line in [
        r#"wxrelay_duplicates_total{account="shop"} 0"#,
        r#"wxrelay_push_duration_seconds_count{account="shop"} 0"#,
        r#"wxrelay_pending{target="crm"} 0"#,
        r#"wxrelay_dead{target="crm"} 0"#,
        r#"wxrelay_target_up{target="crm"} 1"#,
        r#"wxrelay_target_paused{target="crm"} 0"#,
        "wxrelay_unaccounted_deliveries 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.contains(concat!("wxrelay_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")));
    assert!(!text.contains("wxrelay_tls_expiry_timestamp_seconds"), "no series without a certificate");
    assert!(!text.contains("wxrelay_spans_total"), "no series where no spans are exported");
    #[cfg(target_os = "linux")]
    assert!(text.contains("process_resident_memory_bytes"));
}

#[test]
fn counts_by_label() {
    let metrics = Metrics::new();
    let account = metrics.account("shop");
    account.push("text", "stored");
    account.clone().push("text", "stored");
    account.reply("fixed");
    metrics.push_to_unknown_path();
    metrics.target("crm").delivery("delivered");
    let text = metrics.render();
    assert!(text.contains(r#"wxrelay_pushes_total{account="shop",kind="text",result="stored"} 2"#), "{text}");
    assert!(text.contains(r#"wxrelay_pushes_total{account="",kind="none",result="unknown_path"} 1"#), "{text}");
    assert!(text.contains(r#"wxrelay_replies_total{account="shop",result="fixed"} 1"#), "{text}");
    assert!(text.contains(r#"wxrelay_deliveries_total{outcome="delivered",target="crm"} 1"#), "{text}");
}

#[test]
fn a_new_configuration_replaces_the_series_of_the_old() {
    let metrics = Metrics::new();
    metrics.config_info("aa", 1);
    metrics.config_info("bb", 2);
    let text = metrics.render();
    assert!(text.contains(r#"wxrelay_config_info{generation="2",sha256="bb"} 1"#), "{text}");
    assert!(!text.contains(r#"sha256="aa""#), "{text}");
}

#[test]
fn a_backlog_no_longer_reported_is_zero() {
    let metrics = Metrics::new();
    let backlog = Backlog { pending: 3, oldest: Duration::from_millis(1500), dead: 2 };
    metrics.set_backlogs([("crm", backlog)]);
    let handles = metrics.target("crm");
    assert_eq!((handles.pending.get(), handles.oldest_pending.get(), handles.dead.get()), (3, 1.5, 2));
    metrics.set_backlogs([]);
    assert_eq!((handles.pending.get(), handles.oldest_pending.get(), handles.dead.get()), (0, 0.0, 0));
}
