//! What is kept of a connection for the application, for another process.

use http::{HeaderName, HeaderValue};
use tidegate_wire::fields::{Malformed, Reader, Writer};

use super::question::{HandedOn, Known};

/// Of this form.
const VERSION: u8 = 1;

impl Known {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        out.option(self.state.as_deref(), Writer::text);
        out.bool(self.is_asked);
        self.request.write(&mut out);
        out.into_bytes()
    }

    /// # Errors
    /// [`Malformed`]: it is of another form.
    pub(crate) fn parse(record: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(record);
        if fields.u8()? != VERSION {
            return Err(Malformed);
        }
        let known = Self {
            state: fields.option(|fields| fields.text().map(Box::from))?,
            is_asked: fields.bool()?,
            request: HandedOn::read(&mut fields)?.into(),
        };
        fields.end().map(|()| known)
    }
}

impl HandedOn {
    fn write(&self, out: &mut Writer) {
        let pair = |out: &mut Writer, (name, value): &(Box<str>, Box<str>)| {
            out.text(name);
            out.text(value);
        };
        out.option(self.address, |out, address| out.text(&address.to_string()));
        out.list(self.channels.iter(), |out, channel| out.text(channel));
        out.list(self.headers.iter(), |out, (name, value)| {
            out.text(name.as_str());
            out.bytes(value.as_bytes());
        });
        out.list(self.cookies.iter(), pair);
        out.list(self.query.iter(), pair);
        pair(out, &self.client);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = |fields: &mut Reader<'_>| fields.text().map(Box::from);
        let pair = |fields: &mut Reader<'_>| Ok((text(fields)?, text(fields)?));
        let header = |fields: &mut Reader<'_>| {
            let name = HeaderName::try_from(fields.text()?).map_err(|_| Malformed)?;
            Ok((name, HeaderValue::from_bytes(fields.bytes()?).map_err(|_| Malformed)?))
        };
        Ok(Self {
            address: fields.option(|fields| fields.text()?.parse().map_err(|_| Malformed))?,
            channels: fields.list(text)?,
            headers: fields.list(header)?,
            cookies: fields.list(pair)?,
            query: fields.list(pair)?,
            client: pair(fields)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let request = HandedOn {
            address: Some([192, 0, 2, 1].into()),
            channels: vec!["a".into()],
            headers: vec![(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))],
            cookies: vec![("c".into(), "é".into())],
            query: vec![("q".into(), "".into())],
            client: ("js".into(), "5".into()),
        };
        for state in [None, Some("s".into())] {
            let known = Known { state, is_asked: true, request: Arc::new(request.clone()) };
            let written = known.to_bytes();
            let read = Known::parse(&written).expect("its own form");
            assert_eq!((read.state, read.is_asked, read.request), (known.state, true, known.request));
            for end in 0..written.len() {
                assert!(Known::parse(&written[..end]).is_err(), "{end} bytes of {}", written.len());
            }
        }
    }
}
