//! Forms: the ways in which clients are told what happens in a channel. Each protocol brings its own; the list of them
//! all is [`Forms`]. Connections of one channel and one form make a lane, and get the same bytes.

use std::{collections::HashMap, fmt};

use bytes::Bytes;
use tidegate_backplane::Channel;
use tidegate_wire::{
    deflate::Deflater,
    frame::{self, Opcode},
};

use super::content::Content;

/// What a form says of a channel.
pub(crate) trait Form: fmt::Debug + Send + Sync {
    /// Where it stands in the list of all forms.
    fn id(&self) -> FormId;

    /// What clients are told of a content; `None`: nothing. `scratch` is empty, and may hold what is answered.
    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>>;

    /// The form in which a client is told what comes after its first publication in this one, where that is another:
    /// [how it differs](Self::say_after) from what it has.
    fn next(&self) -> Option<FormId> {
        None
    }

    /// Whether it says how a publication differs from the one before it, which whoever has this form was told.
    fn tells_difference(&self) -> bool {
        false
    }

    /// What clients are told of a content that comes after another.
    fn say_after<'a>(
        &self,
        channel: &Channel,
        content: &'a Content,
        before: &Content,
        scratch: &'a mut Vec<u8>,
    ) -> Option<Said<'a>> {
        let _ = before;
        self.say(channel, content, scratch)
    }

    /// Whether a gap can be told between publications. Clients of another form have to be closed, so that they know.
    fn says_gaps(&self) -> bool {
        true
    }

    /// Whether it says who comes and goes.
    fn says_presence(&self) -> bool {
        false
    }

    /// The same form for those who are told that; a form that has none is its own.
    fn with_presence(&self) -> FormId {
        self.id()
    }

    /// Whether something that is each client's own goes before what this form says of a publication: the id of an
    /// event that carries several positions.
    fn has_heads(&self) -> bool {
        false
    }
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// A WebSocket message. It may be deflated and is framed by the encoder.
    Message(Opcode, &'a [u8]),
    /// A part of a stream, as it is.
    Bytes(&'a [u8]),
}

/// Names a form, deflated or not. Every connection keeps one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FormId(u8);

/// All forms of a process, each at the place that its id says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forms(pub(crate) &'static [&'static dyn Form]);

/// For whoever reads many names.
pub(crate) type FormsByName = HashMap<Box<str>, FormId>;

/// Makes encodings; one per thread, so that its buffers are reused.
#[derive(Debug)]
pub(crate) struct Encoder {
    forms: Forms,
    deflater: Deflater,
    scratch: Vec<u8>,
    deflated: Vec<u8>,
}

/// The bit of an id that says deflated.
const DEFLATED: u8 = 0x80;

/// What the name of a deflated form ends with.
const DEFLATED_NAME: &str = " deflated";

/// Forms of all protocols together.
const FORMS_MAX: u8 = 64;

/// Below this, deflate's own few bytes and both sides' time are not worth what it saves.
const DEFLATE_BYTES_MIN: usize = 256;

impl FormId {
    /// The form at a place of the list.
    pub(crate) const fn new(place: u8) -> Self {
        assert!(place < FORMS_MAX);
        Self(place)
    }

    /// The same, with its messages deflated where that pays.
    pub(crate) const fn deflated(self) -> Self {
        Self(self.0 | DEFLATED)
    }

    /// The same without compression.
    pub(crate) const fn plain(self) -> Self {
        Self(self.0 & !DEFLATED)
    }

    pub(crate) const fn is_deflated(self) -> bool {
        self.0 & DEFLATED != 0
    }
}

impl Forms {
    /// A form by what it is, for a process whose list may be another one.
    pub(crate) fn name(self, id: FormId) -> Box<str> {
        let deflated = if id.is_deflated() { DEFLATED_NAME } else { "" };
        format!("{:?}{deflated}", self.get(id)).into()
    }

    /// All by their names.
    pub(crate) fn by_name(self) -> FormsByName {
        let ids = self.0.iter().flat_map(|form| [form.id(), form.id().deflated()]);
        ids.map(|id| (self.name(id), id)).collect()
    }

    pub(crate) fn get(self, id: FormId) -> &'static dyn Form {
        let form = self.0[usize::from(id.plain().0)];
        debug_assert_eq!(form.id(), id.plain());
        form
    }
}

impl Forms {
    /// The form that also says who comes and goes, deflated as this one is.
    pub(crate) fn with_presence(self, id: FormId) -> FormId {
        let form = self.get(id).with_presence();
        if id.is_deflated() { form.deflated() } else { form }
    }
}

impl Encoder {
    pub(crate) fn new(forms: Forms) -> Self {
        // Level 3 costs about half of the default 6 and saves nearly the same on JSON.
        Self { forms, deflater: Deflater::new(3), scratch: Vec::new(), deflated: Vec::new() }
    }

    /// What a form says, uncompressed; empty when that is nothing.
    pub(crate) fn encode(&mut self, channel: &Channel, content: &Content, form: FormId) -> Bytes {
        self.scratch.clear();
        framed(self.forms.get(form).say(channel, content, &mut self.scratch))
    }

    /// The same of what comes after another content.
    pub(crate) fn encode_after(
        &mut self,
        channel: &Channel,
        content: &Content,
        before: &Content,
        form: FormId,
    ) -> Bytes {
        self.scratch.clear();
        framed(self.forms.get(form).say_after(channel, content, before, &mut self.scratch))
    }

    /// The same deflated; `None` where that does not pay.
    pub(super) fn deflate(&mut self, channel: &Channel, content: &Content, form: FormId) -> Option<Bytes> {
        self.scratch.clear();
        match self.forms.get(form).say(channel, content, &mut self.scratch)? {
            Said::Message(opcode, payload) if payload.len() >= DEFLATE_BYTES_MIN => {
                self.deflated.clear();
                self.deflater.compress(payload, &mut self.deflated);
                (self.deflated.len() < payload.len()).then(|| {
                    let mut out = Vec::with_capacity(frame::encoded_len(self.deflated.len()));
                    frame::encode_compressed(opcode, &self.deflated, &mut out);
                    Bytes::from(out)
                })
            }
            _ => None,
        }
    }
}

fn framed(said: Option<Said<'_>>) -> Bytes {
    match said {
        None => Bytes::new(),
        Some(Said::Bytes(bytes)) => Bytes::copy_from_slice(bytes),
        Some(Said::Message(opcode, payload)) => {
            let mut out = Vec::with_capacity(frame::encoded_len(payload.len()));
            frame::encode(opcode, payload, &mut out);
            Bytes::from(out)
        }
    }
}
