//! Named values: set, get, list, remove, in both dialects.

use serde_json::json;

use papa_harness::Kernel;

#[test]
fn a_value_is_set_listed_cleared_and_removed() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("set circus.a one  two");
    client.ask("set circus.b 2");
    client.ask("set other x");
    assert_eq!(client.ask("get circus.a"), "one two");
    assert_eq!(
        client.ask("list values circus.*"),
        "circus.a one two\ncircus.b 2"
    );
    client.ask("set circus.a");
    assert_eq!(client.ask("get circus.a"), "");
    client.ask("remove values circus.*");
    assert_eq!(client.ask("list values"), "other x");
}

#[test]
fn removing_everything_by_accident_is_refused() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("set a b");
    for line in ["remove values", "remove values *"] {
        assert_eq!(
            client.ask_error(line),
            "You cannot remove all variables",
            "{line}"
        );
    }
    assert_eq!(client.ask("get a"), "b");
}

#[test]
fn json_carries_any_value_losslessly_and_the_listing_stays_one_line_each() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let value = "two\nlines, a \u{1b}[31mcolour, a \"quote\" and a trailing \\";
    session.ok("value.set", json!({"name": "odd", "value": value}));
    assert_eq!(
        session.ok("value.get", json!({"name": "odd"}))["value"],
        value
    );
    let bytes = json!([104, 105, 255, 0, 10]);
    session.ok("value.set", json!({"name": "raw", "value": bytes}));
    assert_eq!(
        session.ok("value.get", json!({"name": "raw"}))["value"],
        bytes
    );
    let listed = kernel.classic().ask("list values");
    assert_eq!(listed.lines().count(), 2, "{listed:?}");
    assert!(!listed.contains('\u{1b}'), "{listed:?}");
}

#[test]
fn a_missing_value_is_null_and_a_bad_name_an_error() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    assert!(session.ok("value.get", json!({"name": "none"}))["value"].is_null());
    for name in ["", "a:b", "a\nb", " a", "a ", "a*", "\u{7}"] {
        assert_eq!(
            session.error("value.set", json!({"name": name, "value": "x"})),
            "invalid",
            "{name:?}"
        );
    }
    assert_eq!(session.ok("value.list", json!({}))["values"], json!({}));
}

#[test]
fn values_survive_the_kernel() {
    let mut kernel = Kernel::start();
    kernel.json().ok(
        "value.set",
        json!({"name": "kept", "value": "across\nrestarts"}),
    );
    kernel.kill_kernel();
    assert_eq!(
        kernel.json().ok("value.get", json!({"name": "kept"}))["value"],
        "across\nrestarts"
    );
}
