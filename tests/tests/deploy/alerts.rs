//! The rules of `deploy/prometheus`: good, tested, and each alert in the runbook.

use std::{collections::BTreeSet, fs, process::Command};

use crate::tools::{read, run};

/// Where whoever is woken finds the page; the chart takes another address.
const RUNBOOK: &str = "https://github.com/tidegate/tidegate/blob/main/docs/runbook.md";

/// Alerts as the file lists them, with the link of each.
fn alerts() -> Vec<(String, String)> {
    let rules = read("deploy/prometheus/rules.yml");
    let entries = rules.split("- alert: ").skip(1).map(|entry| {
        let name = entry.lines().next().unwrap().trim().to_owned();
        let link = entry.lines().find_map(|line| line.trim().strip_prefix("runbook_url: "));
        (name, link.unwrap_or_default().to_owned())
    });
    entries.collect()
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    run(Command::new("promtool").args(["check", "rules", "--lint-fatal", "deploy/prometheus/rules.yml"]));
    run(Command::new("promtool").args(["test", "rules", "deploy/prometheus/rules_test.yml"]));
}

#[test]
fn promtool_accepts_the_configuration_of_the_compose_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let rules = file("rules.yml").display().to_string();
    let configuration = read("deploy/prometheus/prometheus.yml");
    assert!(configuration.contains("/etc/prometheus/rules.yml"));
    fs::write(file("prometheus.yml"), configuration.replace("/etc/prometheus/rules.yml", &rules)).unwrap();
    fs::write(file("rules.yml"), read("deploy/prometheus/rules.yml")).unwrap();
    run(Command::new("promtool").args(["check", "config", "--lint-fatal"]).arg(file("prometheus.yml")));
}

#[test]
fn every_alert_is_tested_silent_and_firing() {
    let tests = read("deploy/prometheus/rules_test.yml");
    for (alert, _) in alerts() {
        let cases: Vec<&str> = tests.split(&format!("- alertname: {alert}\n")).skip(1).collect();
        let silent = |case: &&&str| case.lines().take(2).any(|line| line.trim() == "exp_alerts: []");
        let silent = cases.iter().filter(silent).count();
        assert!(silent >= 1 && silent < cases.len(), "{alert}: {silent} of {} cases are silent", cases.len());
    }
}

#[test]
fn every_alert_has_its_entry_in_the_runbook_and_no_entry_is_left_over() {
    let runbook = read("docs/runbook.md");
    let entries: Vec<(&str, &str)> =
        runbook.split("\n## ").skip(1).map(|entry| entry.split_once('\n').unwrap()).collect();
    for (name, text) in &entries {
        for part in ["**Means.**", "**Look at", "**"] {
            assert!(text.contains(part), "{name} does not say: {part}");
        }
        assert!(text.contains("**Do.**") || text.contains("and do**"), "{name} does not say what to do");
    }
    let alerts = alerts();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for (alert, link) in &alerts {
        assert_eq!(*link, format!("{RUNBOOK}#{}", alert.to_lowercase()));
    }
    let named: BTreeSet<&str> = alerts.iter().map(|(alert, _)| alert.as_str()).collect();
    assert_eq!(entries.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), named);
}
