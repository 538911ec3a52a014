//! `subscribe`, `unsubscribe`, `disconnect` and `refresh`: orders to the nodes that have the connections. An order that was
//! taken is on its way; a user that is not connected is no error.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tidegate_backplane::Target;
use tidegate_wire::{
    centrifuge::code::{Disconnect as DisconnectCode, ErrorCode},
    json::JsonValue,
};

use super::{
    Answer, Call,
    answer::{Refused, parameters},
    nothing,
    request::{Disconnect, Refresh, Subscribe, Unsubscribe},
};
use crate::{
    auth::Scope,
    hooks,
    node::instruction::{Asked, Owner, Since, What},
};

/// A reason of a close frame, in bytes (RFC 6455 section 5.5).
const REASON_BYTES_MAX: usize = 123;

/// Whose connections are meant.
struct Whom<'a> {
    user: &'a str,
    client: &'a str,
    session: &'a str,
}

impl Call<'_> {
    pub(super) async fn subscribe(&self, params: &Bytes) -> Answer {
        let request: Subscribe<'_> = parameters(params)?;
        let Subscribe { user, client, session, channel, recover_since, data, b64data, info, b64info } =
            &request;
        self.channel(Scope::Admin, channel)?;
        let data = match (data, &**b64data) {
            (None, "") => String::new(),
            (Some(data), "") => STANDARD.encode(data.get()),
            (_, base64) => {
                STANDARD.decode(base64).map_err(|_| Refused::bad("b64data is no base64"))?;
                base64.to_owned()
            }
        };
        let info = hooks::info(info.map(JsonValue::get), Some(b64info))
            .map_err(|_| Refused::bad("b64info is no base64"))?;
        let since = recover_since.as_ref();
        let since = since.map(|since| Since { offset: since.offset, epoch: (&*since.epoch).into() });
        let what = What::Subscribe { channel: (&**channel).into(), data: data.into(), since, info };
        self.instruct(&Whom { user, client, session }, what).await
    }

    pub(super) async fn unsubscribe(&self, params: &Bytes) -> Answer {
        let request: Unsubscribe = parameters(params)?;
        let Unsubscribe { user, client, session, channel } = &request;
        self.channel(Scope::Admin, channel)?;
        let what = What::Unsubscribe { channel: (&**channel).into() };
        self.instruct(&Whom { user, client, session }, what).await
    }

    /// All connections of the user, whatever they speak.
    pub(super) async fn disconnect(&self, params: &Bytes) -> Answer {
        let request: Disconnect = parameters(params)?;
        let Disconnect { user, client, session, whitelist, disconnect } = request;
        let whom = Whom { user: &user, client: &client, session: &session };
        let code = disconnect.unwrap_or_default();
        if code.reason.len() > REASON_BYTES_MAX {
            return Err(Refused::bad(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
        }
        let force = DisconnectCode::Force;
        let (code, reason) = match (code.code, code.reason) {
            (0, _) => (force as u16, force.text().to_owned()),
            (code @ 3000..5000, reason) => (code, reason),
            _ => return Err(Refused::bad("codes are from 3000 to 4999")),
        };
        let is_plain = code == force as u16 && whitelist.is_empty() && client.is_empty();
        if !is_plain {
            let except = whitelist.into_iter().map(Into::into).collect();
            return self.instruct(&whom, What::Close { code, reason: reason.into(), except }).await;
        }
        self.check(Scope::Admin, None)?;
        let (target, _) = self.target(&whom)?;
        self.state.node.disconnect(target, reason.into()).await?;
        nothing()
    }

    pub(super) async fn refresh(&self, params: &Bytes) -> Answer {
        let Refresh { user, client, session, expired, expire_at } = parameters(params)?;
        let whom = Whom { user: &user, client: &client, session: &session };
        let expires_at = u64::try_from(expire_at).ok().filter(|&at| at > 0);
        let what = if expired { What::Expire } else { What::Refresh { expires_at } };
        self.instruct(&whom, what).await
    }

    async fn instruct(&self, whom: &Whom<'_>, what: What) -> Answer {
        self.check(Scope::Admin, None)?;
        let (target, user) = self.target(whom)?;
        let owner = Some(Owner { app: self.app().map(Box::from), user });
        self.state.node.instruct(Asked { target, owner, what }).await?;
        nothing()
    }

    fn target(&self, whom: &Whom<'_>) -> Result<(Target, Box<str>), Refused> {
        let Whom { user, client, session } = *whom;
        if user.is_empty() {
            return Err(Refused::bad("it needs a user"));
        }
        if !session.is_empty() {
            return Err(Refused::because(
                ErrorCode::NotAvailable,
                "connections have no session: name the client",
            ));
        }
        let target = match client {
            "" => Target::User { app: self.app().map(Box::from), user: user.into() },
            client => Target::Connection(client.into()),
        };
        Ok((target, user.into()))
    }
}
