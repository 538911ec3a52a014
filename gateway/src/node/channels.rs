//! Channels with subscribers on all nodes. Each node says a page of its own, in the order of their names, and the node that was
//! asked adds them up; a question is an instruction that no connection carries out.

use tidegate_backplane::{BackplaneError, Target};

use super::{
    Node,
    instruction::{Answer, Asked, ChannelsAsked, Counted, What},
    interest::Interests,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelsError {
    #[error("more than {max} channels have such names: ask for fewer of them")]
    TooMany { max: usize },
    #[error("these nodes have not answered: {}; try again", .0.join(", "))]
    Silent(Vec<Box<str>>),
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
}

/// Channels that a node looks out for one page. Of a name of 12 characters about 900 fit in a report.
const PAGE: usize = 1000;

impl Interests {
    /// A page of what is asked for.
    pub(super) fn page(&self, asked: &ChannelsAsked) -> Answer {
        let mut answer = self.first(asked, PAGE + 1);
        answer.more = answer.channels.len() > PAGE;
        answer.channels.truncate(PAGE);
        answer
    }

    fn first(&self, asked: &ChannelsAsked, limit: usize) -> Answer {
        let ChannelsAsked { app, pattern, after } = asked;
        let found = self.list(app.as_deref(), |name| fits(pattern, name), after.as_deref(), limit);
        let channels = found.into_iter().map(|(channel, count)| (channel.name().into(), count)).collect();
        Answer { channels, ..Answer::default() }
    }
}

impl Node {
    /// Channels of an app that have subscribers on any node, `max` at most. Where a node does not answer nothing is said: its
    /// channels would be missing.
    pub(crate) async fn channels_of_all(
        &self,
        app: Option<&str>,
        pattern: &str,
        max: usize,
    ) -> Result<Counted, ChannelsError> {
        let mut asked = ChannelsAsked { app: app.map(Into::into), pattern: pattern.into(), after: None };
        // Each page is a look at all channels of every node.
        let _turn = self.listing.acquire().await;
        let is_alone = self.nodes().await?.iter().all(|node| *node.name == *self.name());
        let mut all = Counted::new();
        loop {
            let answer = match is_alone {
                true => self.relay.interests.first(&asked, max + 1),
                false => {
                    let what = What::Channels(asked.clone());
                    let target = Target::Everyone { app: app.map(Into::into) };
                    let answers = self.ask(Asked { target, owner: None, what }).await?;
                    if !answers.silent.is_empty() {
                        return Err(ChannelsError::Silent(answers.silent));
                    }
                    answers.answer
                }
            };
            asked.after = answer.channels.last().map(|(name, _)| name.clone());
            all.extend(answer.channels);
            if all.len() > max {
                return Err(ChannelsError::TooMany { max });
            }
            if !answer.more || asked.after.is_none() {
                return Ok(all);
            }
        }
    }
}

/// Whether a name is of a pattern in which `*` stands for any characters and `?` for one. A name has at most 200, so going
/// back to the last star is cheap.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut read, mut star) = (0, 0, None);
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star_at, from)) = star else { return false };
                star = Some((star_at, from + 1));
                at = star_at + 1;
                read = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, name, expect) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("*c", "abcc", true),
            ("a*c*", "abd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*", "abc", true),
            ("**", "", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expect, "{pattern} {name}");
        }
    }
}
