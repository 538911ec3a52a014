//! Rosters that go on in another process: what those who were given a list know, so that they are told every change after it.

use std::sync::{Arc, Mutex, PoisonError};

use tidegate_backplane::{Channel, Member, Members};
use tidegate_wire::fields::{Malformed, Reader, Writer};

use super::{Roster, Rosters, replica::Replica};

impl Rosters {
    pub(crate) fn write(&self, out: &mut Writer) {
        let rosters = self.rosters.read().unwrap_or_else(PoisonError::into_inner);
        let current =
            rosters.values().filter(|roster| self.is_current(roster) && roster.with(|it| it.is_told()));
        out.list(current.collect::<Vec<_>>().into_iter(), |out, roster| {
            out.text(roster.interest.channel.as_str());
            roster.with(|replica| {
                let (sequence, members, is_current) = replica.parts();
                out.u64(sequence);
                out.bool(is_current);
                out.list(members.iter().collect::<Vec<_>>().into_iter(), |out, member| {
                    out.text(&member.connection);
                    out.text(&member.user);
                    out.option(member.info.as_deref(), Writer::text);
                });
            });
        });
    }

    /// Takes in what another process knew, for [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// [`Malformed`]: it is of another form.
    pub(crate) fn take_in(&self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        let moved = fields.list(|fields| {
            let channel = Channel::from_inside(fields.text()?).map_err(|_| Malformed)?;
            let (sequence, is_current) = (fields.u64()?, fields.bool()?);
            let members: Members = fields.list(read_member)?.into_iter().map(Arc::new).collect();
            Ok((channel, Replica::of(sequence, members, is_current)))
        })?;
        *self.moved() = moved.into_iter().collect();
        Ok(())
    }

    /// Goes on with the list of a channel that somebody of this node was given. A shard holds the channel.
    pub(crate) fn go_on(self: &Arc<Self>, channel: &Channel) {
        let Some(replica) = self.moved().remove(channel) else { return };
        let Some(interest) = self.interests.get(channel) else { return };
        let roster = Arc::new(Roster { interest, replica: Mutex::new(replica) });
        let mut rosters = self.rosters.write().unwrap_or_else(PoisonError::into_inner);
        rosters.insert(channel.clone(), Arc::clone(&roster));
        drop(rosters);
        let cause = roster.with(Replica::resume);
        self.begin_reading(&roster, cause);
    }
}

fn read_member(fields: &mut Reader<'_>) -> Result<Member, Malformed> {
    Ok(Member {
        connection: fields.text()?.into(),
        user: fields.text()?.into(),
        info: fields.option(|fields| fields.text().map(Box::from))?,
    })
}
