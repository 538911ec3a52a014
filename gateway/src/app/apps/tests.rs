//! Apps: found, counted, and replaced while they are used.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;
use tidegate_testkit::{DEADLINE, eventually};
use tokio::runtime::Runtime;

use super::{metrics::ReloadResult, *};
use crate::{app::webhooks::Webhooks, config::Config};

/// Apps from a file that is watched.
struct Watched {
    apps: Arc<Apps>,
    changes: Arc<AtomicUsize>,
    file: PathBuf,
    directory: TempDir,
    _runtime: Runtime,
}

impl Watched {
    fn new(text: &str) -> Self {
        let directory = TempDir::new().unwrap();
        // As Kubernetes does it: the file is a link through a link that is swapped.
        let file = directory.path().join("apps.toml");
        let watched =
            |apps, changes, runtime| Self { apps, changes, file: file.clone(), directory, _runtime: runtime };
        swap(file.parent().unwrap(), "first", text);
        std::os::unix::fs::symlink("current/apps.toml", &file).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut config = Config { apps_file: Some(file.clone()), ..Config::default() };
        config.apps.0.insert(
            AppId::new("fixed").unwrap(),
            crate::config::AppEntry {
                key: Some("fixed-key".into()),
                secret: Some(crate::config::Secret::new(b"s")),
                ..Default::default()
            },
        );
        let webhooks = Webhooks::new(config.webhooks.clone(), runtime.handle().clone()).unwrap();
        let apps = Arc::new(Apps::new(&config, Arc::new(webhooks)).unwrap());
        let changes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&changes);
        let shared = Arc::clone(&apps);
        runtime.spawn(async move {
            let changed = || {
                count.fetch_add(1, Ordering::Release);
            };
            reload::keep_fresh(shared, changed).await;
        });
        watched(apps, changes, runtime)
    }

    fn swap(&self, name: &str, text: &str) {
        swap(self.directory.path(), name, text);
    }

    fn eventually(&self, what: &str, condition: impl Fn(&Apps) -> bool) {
        eventually(what, DEADLINE, || condition(&self.apps));
    }

    fn reloads(&self, result: ReloadResult) -> u64 {
        self.apps.metrics.reloads.get(result)
    }
}

/// Makes `current` lead to a directory of that name whose `apps.toml` has this text.
fn swap(directory: &Path, name: &str, text: &str) {
    fs::create_dir(directory.join(name)).unwrap();
    fs::write(directory.join(name).join("apps.toml"), text).unwrap();
    let link = directory.join("new");
    std::os::unix::fs::symlink(name, &link).unwrap();
    fs::rename(link, directory.join("current")).unwrap();
}

fn app(id: &str, more: &str) -> String {
    format!("[apps.{id}]\nkey = 'key-{id}'\nsecret = 'secret'\n{more}\n")
}

#[test]
fn a_changed_file_replaces_all_its_apps_or_none() {
    let watched = Watched::new(&app("a", "[apps.a.limits]\nconnections = 2"));
    let before = watched.apps.by_key("key-a").unwrap();
    assert!(watched.apps.by_key("fixed-key").is_some() && watched.apps.by_id("b").is_none());
    assert!(before.admit() && before.admit() && !before.admit());
    let generation = watched.apps.generation();

    watched.swap("second", &format!("{}{}", app("a", "enabled = false"), app("b", "")));
    watched.eventually("app b", |apps| apps.by_id("b").is_some());
    let after = watched.apps.by_id("a").unwrap();
    assert!(!after.enabled && before.enabled);
    // What was counted counts on: the connections are the same.
    assert_eq!((after.connections(), before.connections()), (2, 2));
    before.release();
    assert_eq!(after.connections(), 1);
    assert!(watched.apps.generation() > generation);
    eventually("the change is told", DEADLINE, || watched.changes.load(Ordering::Acquire) == 1);

    watched.swap("bad", &format!("{}{}", app("c", ""), "[apps.d]\nkey = 'no secret'"));
    eventually("a refused list", DEADLINE, || watched.reloads(ReloadResult::Refused) == 1);
    assert!(watched.apps.by_id("b").is_some() && watched.apps.by_id("c").is_none());

    watched.swap("third", &app("c", ""));
    watched.eventually("app c", |apps| apps.by_id("c").is_some());
    assert!(watched.apps.by_id("a").is_none() && watched.apps.by_key("key-b").is_none());
    assert!(watched.apps.by_id("fixed").is_some());
    assert_eq!((watched.reloads(ReloadResult::Replaced), watched.reloads(ReloadResult::Refused)), (2, 1));
}

/// A shard looks at the list when it is told that it changed; by then the app may be back.
#[test]
fn an_app_that_was_gone_for_a_moment_counts_on() {
    let watched = Watched::new(&app("a", "[apps.a.limits]\nconnections = 2"));
    let held = watched.apps.by_key("key-a").unwrap();
    assert!(held.admit() && held.admit());
    watched.swap("without", &app("b", ""));
    watched.eventually("no app a", |apps| apps.by_id("a").is_none());
    watched.swap("again", &app("a", "[apps.a.limits]\nconnections = 2"));
    watched.eventually("app a", |apps| apps.by_id("a").is_some());
    let back = watched.apps.by_id("a").unwrap();
    assert_eq!(back.connections(), 2);
    assert!(!back.admit());
    back.release();
    held.release();
    assert_eq!((back.connections(), held.connections()), (0, 0));
}

#[test]
fn a_file_that_is_gone_leaves_the_apps_as_they_are() {
    let watched = Watched::new(&app("a", ""));
    fs::remove_file(&watched.file).unwrap();
    eventually("a refused list", DEADLINE, || watched.reloads(ReloadResult::Refused) == 1);
    assert!(watched.apps.by_id("a").is_some());
    fs::write(&watched.file, app("b", "")).unwrap();
    watched.eventually("app b", |apps| apps.by_id("b").is_some() && apps.by_id("a").is_none());
}

#[test]
fn who_asks_has_the_secrets_read_again_too() {
    let directory = TempDir::new().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "one").unwrap();
    let watched = Watched::new(&format!("[apps.a]\nkey = 'k'\nsecret_file = '{}'", secret.display()));
    let signer =
        |secret: &str| Signer::new("k".into(), [crate::config::Secret::new(secret.as_bytes())].iter());
    let takes = |secret: &str| watched.apps.by_id("a").unwrap().verify("text", &signer(secret).sign(b"text"));
    assert!(takes("one") && !takes("two"));
    fs::write(&secret, "two").unwrap();
    watched.apps.reload().unwrap();
    assert!(takes("two") && !takes("one"));
}

/// What a start would refuse is refused later, too.
#[test]
fn a_file_that_contradicts_the_limits_of_the_node_is_refused() {
    let watched = Watched::new(&app("a", ""));
    watched.swap("large", &app("b", "limits.event_bytes = '2MiB'"));
    eventually("a refused list", DEADLINE, || watched.reloads(ReloadResult::Refused) == 1);
    assert!(watched.apps.by_id("a").is_some() && watched.apps.by_id("b").is_none());
}

#[test]
fn another_configuration_has_other_tables() {
    let watched = Watched::new(&app("a", ""));
    let mut config = Config::default();
    let (id, key, secret) =
        (AppId::new("new").unwrap(), Some("new-key".into()), Some(crate::config::Secret::new(b"s")));
    config.apps.0.insert(id.clone(), crate::config::AppEntry { key, secret, ..Default::default() });
    watched.apps.replace(&config).unwrap();
    assert!(watched.apps.by_key("new-key").is_some() && watched.apps.by_key("fixed-key").is_none());
    assert!(watched.apps.by_id("a").is_some(), "the file's are still there");
    config.apps.0.get_mut(&id).unwrap().key = Some("key-a".into());
    assert!(watched.apps.replace(&config).is_err(), "the key is another app's");
    assert!(watched.apps.by_key("new-key").is_some());
}

#[test]
fn ids() {
    for id in ["1", "a-B_9", &"x".repeat(AppId::BYTES_MAX)] {
        assert_eq!(AppId::new(id).unwrap().as_str(), id);
    }
    for id in ["", "a b", "a!b", "a/b", "é", "a.b", &"x".repeat(AppId::BYTES_MAX + 1)] {
        assert_eq!(AppId::new(id), None, "{id}");
    }
}
