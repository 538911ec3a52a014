//! `/echo` in `--dev`: every message comes back, compressed where the client can read that.

use tidegate_wire::{
    frame::{self, Opcode},
    head::Head,
    raw::Query,
};

use super::forms::VERBATIM;
use crate::{
    hub::form::FormId,
    session::{
        Ctx,
        asking::Said,
        core::Core,
        opening::{Request, Stop},
        protocol::{Event, Protocol},
        refusal::Refusal,
    },
};

#[derive(Debug)]
pub(crate) struct Echo;

impl Protocol for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn serves(&self, method: &str, path: &str, dev: bool) -> bool {
        dev && method == "GET" && path == "/echo"
    }

    fn accept(&self, core: &Core, head: &Head<'_>, _said: &Said) -> Result<Request, Stop> {
        core.check_origin(head)?;
        let upgrade = core.upgrade(head)?;
        Query::parse(head.query).map_err(Refusal::from)?;
        Ok(Request::bare(Some(upgrade)))
    }

    fn form(&self, request: &Request, _compression: bool) -> FormId {
        if request.shares_deflate() { VERBATIM.deflated() } else { VERBATIM }
    }

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        echo(ctx, Opcode::Text, text.as_bytes());
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, bytes: &[u8]) {
        echo(ctx, Opcode::Binary, bytes);
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>) {
        if let Event::Silent = event {
            ctx.give_up_silent();
        }
    }
}

/// What is echoed is bounded by the message it answers.
fn echo(ctx: &mut Ctx<'_>, opcode: Opcode, payload: &[u8]) {
    let deflates = ctx.open().is_some_and(|open| open.form.is_deflated());
    let mut deflated = Vec::new();
    if deflates {
        ctx.core.deflater.compress(payload, &mut deflated);
    }
    ctx.answer(|out| match deflates {
        true => frame::encode_compressed(opcode, &deflated, out),
        false => frame::encode(opcode, payload, out),
    });
    ctx.core.metrics.messages_sent.add(1);
}
