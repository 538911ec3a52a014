//! The applications that clients belong to: their keys and limits, the webhooks that tell their servers what happens,
//! and what the name of one of their channels says. Pusher's rules hold for channels of apps, and for no others.

pub(crate) mod apps;
pub(crate) mod webhooks;

use std::time::Duration;

use tidegate_backplane::{Channel, HistoryPolicy};
use tidegate_wire::pusher::ChannelKind;

use crate::config::Config;

/// What an app's cache channel keeps, whoever publishes to it: its last event, for as long as hosted Pusher.
const CACHE: HistoryPolicy = HistoryPolicy { size: 1, age: Duration::from_secs(30 * 60) };

/// What the name of an app's channel says. `None`: the channel is of no app, and its name is just a name.
pub(crate) fn kind_of(config: &Config, channel: &Channel) -> Option<ChannelKind> {
    let is_of_app = channel.app().is_some() || config.default_app.is_some();
    is_of_app.then(|| ChannelKind::of(channel.name()))
}

/// What an app has its backplane keep of a channel. `None`: what the channel's namespace says.
pub(crate) fn kept_of(config: &Config, channel: &Channel) -> Option<HistoryPolicy> {
    kind_of(config, channel).filter(|kind| kind.is_cache).map(|_| CACHE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AppId;

    #[test]
    fn names_say_something_in_apps_only() {
        let check = |default: Option<&str>, channel: &str, is_kept: bool, is_restricted: bool| {
            let config = Config { default_app: default.and_then(AppId::new), ..Config::default() };
            let (app, name) =
                channel.split_once('!').map_or((None, channel), |(app, name)| (Some(app), name));
            let channel = AppId::channel(app, name).expect("a channel");
            let restricted = kind_of(&config, &channel).is_some_and(ChannelKind::is_restricted);
            assert_eq!(
                (kept_of(&config, &channel).is_some(), restricted),
                (is_kept, is_restricted),
                "{default:?} {channel}"
            );
        };
        check(None, "cache-a", false, false);
        check(None, "private-cache-a", false, false);
        check(None, "2!private-cache-a", true, true);
        check(Some("1"), "cache-a", true, false);
        check(Some("1"), "private-cache-a", true, true);
        check(Some("1"), "news", false, false);
    }
}
