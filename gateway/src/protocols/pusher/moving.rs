//! What another process has to know of a client of Pusher Channels to go on with it: its app, by id, and who it is.
//!
//! Its socket id and its name in presence are made of what the core hands on; users whom it watches are subscriptions.

use tidegate_wire::{
    fields::{Malformed, Reader, Writer},
    pusher::Identity,
};

use super::AppKey;
use crate::{
    app::apps::Apps,
    session::{Open, core::Core, protocol::Stays},
};

/// Of this form.
const VERSION: u8 = 1;

pub(super) fn hand_on(core: &Core, open: &Open, out: &mut Writer) -> Result<(), Stays> {
    // Without an app it is about to leave.
    let app = core.rooms.pusher().apps.get(AppKey(open.tag)).ok_or(Stays::Ever)?;
    let pusher = open.pusher();
    write(app.id.as_str(), pusher.and_then(|pusher| pusher.user.as_deref()), out);
    Stays::unless(pusher.is_none_or(|pusher| pusher.watched.is_empty()))
}

/// Whose app is gone or disabled comes back, and is told so.
pub(super) fn understands(own: &[u8], apps: &Apps) -> bool {
    parse(own).is_ok_and(|(app, _)| apps.by_id(app).is_some_and(|app| app.enabled))
}

pub(super) fn go_on(core: &mut Core, open: &mut Open, own: &[u8]) {
    let Ok((app, user)) = parse(own) else { return };
    let Some(app) = core.shared.apps.by_id(app) else { return };
    app.keep();
    open.tag = core.rooms.pusher_mut().apps.intern(app).0;
    if let Some(user) = user {
        open.pusher_mut().user = Some(Box::new(user));
    }
}

fn write(app: &str, user: Option<&Identity>, out: &mut Writer) {
    out.u8(VERSION);
    out.text(app);
    out.option(user, |out, user| {
        out.text(&user.id);
        out.option(user.info.as_deref(), Writer::text);
        out.list(user.watchlist.iter(), |out, watched| out.text(watched));
    });
}

fn parse(own: &[u8]) -> Result<(&str, Option<Identity>), Malformed> {
    let mut fields = Reader::new(own);
    if fields.u8()? != VERSION {
        return Err(Malformed);
    }
    let app = fields.text()?;
    let text = |fields: &mut Reader<'_>| fields.text().map(Box::from);
    let user = fields.option(|fields| {
        Ok(Identity { id: text(fields)?, info: fields.option(text)?, watchlist: fields.list(text)? })
    })?;
    fields.end().map(|()| (app, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(app: &str, user: Option<Identity>) {
        let mut out = Writer::default();
        write(app, user.as_ref(), &mut out);
        let own = out.into_bytes();
        assert_eq!(parse(&own), Ok((app, user)));
        let mut later = own.clone();
        later[0] += 1;
        assert_eq!(parse(&later), Err(Malformed), "of another version");
        for end in 0..own.len() {
            assert_eq!(parse(&own[..end]), Err(Malformed), "{end} bytes of {}", own.len());
        }
        assert_eq!(parse(&[&own[..], &[0]].concat()), Err(Malformed), "with a byte more");
    }

    #[test]
    fn what_is_written_is_read() {
        check("1", None);
        check("shop", Some(Identity { id: "ada".into(), info: None, watchlist: Vec::new() }));
        let info = Some("{\"name\":\"Ada\"}".into());
        check("1", Some(Identity { id: "a@b.c".into(), info, watchlist: vec!["bob".into(), "cyd".into()] }));
    }
}
