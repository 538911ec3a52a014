//! Frames from the server to the client (RFC 6455 §5.2): unmasked, unfragmented, encoded once and shared.

/// What a frame is (RFC 6455 §5.2). The values are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

/// Why a connection is closed (RFC 6455 §7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u16);

/// The longest header a server writes: 2 bytes and a 64-bit length. It never masks.
pub const HEADER_BYTES_MAX: usize = 10;

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// The longest reason of a close frame: a control payload without the two bytes of the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;

pub(crate) const FIN: u8 = 0x80;
pub(crate) const RSV1: u8 = 0x40;
pub(crate) const RSV2_AND_3: u8 = 0x30;
pub(crate) const OPCODE: u8 = 0x0F;
pub(crate) const MASK: u8 = 0x80;
pub(crate) const LENGTH: u8 = 0x7F;
pub(crate) const LENGTH_16: u8 = 126;
pub(crate) const LENGTH_64: u8 = 127;

impl Opcode {
    /// The opcode of four bits, `None` for a reserved one.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    /// Control frames have the high bit of the opcode set (RFC 6455 §5.5).
    #[must_use]
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

impl CloseCode {
    pub const NORMAL: Self = Self(1000);
    pub const GOING_AWAY: Self = Self(1001);
    pub const PROTOCOL_ERROR: Self = Self(1002);
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    pub const INVALID_PAYLOAD: Self = Self(1007);
    pub const POLICY_VIOLATION: Self = Self(1008);
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    pub const INTERNAL_ERROR: Self = Self(1011);
    pub const SERVICE_RESTART: Self = Self(1012);
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// Whether a peer may send this code: registered with IANA for use on the wire, or in the ranges of libraries
    /// (3xxx) and applications (4xxx). 1004 is reserved; 1005, 1006 and 1015 only name what was *not* on the wire
    /// (RFC 6455 §7.4.1, §7.4.2).
    #[must_use]
    pub fn is_valid_on_wire(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// The bytes of a header and how many of them count, for an unfragmented, unmasked frame.
#[must_use]
pub fn header(opcode: Opcode, rsv1: bool, payload_len: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    header[0] = FIN | if rsv1 { RSV1 } else { 0 } | opcode as u8;
    match payload_len {
        0..=125 => {
            header[1] = payload_len as u8;
            (header, 2)
        }
        126..=0xFFFF => {
            header[1] = LENGTH_16;
            header[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
            (header, 4)
        }
        _ => {
            header[1] = LENGTH_64;
            header[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
            (header, 10)
        }
    }
}

/// Bytes on the wire of a frame with `payload_len` bytes of payload.
#[must_use]
pub fn encoded_len(payload_len: usize) -> usize {
    payload_len
        + match payload_len {
            0..=125 => 2,
            126..=0xFFFF => 4,
            _ => HEADER_BYTES_MAX,
        }
}

/// Appends one frame. A control payload is cut at [`CONTROL_PAYLOAD_BYTES_MAX`]; [`encode_close`] cuts reasons at
/// a character instead.
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    let payload = match opcode.is_control() {
        true => &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)],
        false => payload,
    };
    push(opcode, false, payload, out);
}

/// Appends one data frame whose payload is already deflated (RFC 7692 §7.2.1): RSV1 is set.
pub fn encode_compressed(opcode: Opcode, deflated: &[u8], out: &mut Vec<u8>) {
    debug_assert!(!opcode.is_control(), "control frames are never compressed (RFC 7692 §6.1)");
    push(opcode, true, deflated, out);
}

/// Appends a close frame; the reason is cut at the last character that fits into a control frame.
pub fn encode_close(code: CloseCode, reason: &str, out: &mut Vec<u8>) {
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let (header, header_len) = header(Opcode::Close, false, 2 + reason.len());
    out.extend_from_slice(&header[..header_len]);
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

fn push(opcode: Opcode, rsv1: bool, payload: &[u8], out: &mut Vec<u8>) {
    let (header, header_len) = header(opcode, rsv1, payload.len());
    out.reserve(header_len + payload.len());
    out.extend_from_slice(&header[..header_len]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, expected) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (1 << 20, 10)] {
            let (bytes, header_len) = header(Opcode::Binary, false, len);
            assert_eq!(header_len, expected, "{len}");
            assert_eq!(encoded_len(len), expected + len);
            assert_eq!(bytes[0], 0x82);
            assert_eq!(bytes[1] & MASK, 0, "a server never masks");
        }
        assert_eq!(header(Opcode::Text, true, 126).0[..4], [0xC1, 126, 0, 126]);
        assert_eq!(header(Opcode::Text, false, 65_536).0, [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn close_reasons_are_cut_at_a_character() {
        let mut out = Vec::new();
        encode_close(CloseCode(4010), &"é".repeat(100), &mut out);
        assert_eq!(out[..4], [0x88, 124, 0x0F, 0xAA]);
        assert_eq!(out.len(), 2 + 124);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }

    #[test]
    fn oversized_control_payloads_are_cut() {
        let mut out = Vec::new();
        encode(Opcode::Pong, &[7; 200], &mut out);
        assert_eq!(out.len(), 2 + 125);
        assert_eq!(out[..2], [0x8A, 125]);
    }

    #[test]
    fn close_codes_of_the_wire() {
        let valid =
            [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
        let invalid = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535];
        for code in valid {
            assert!(CloseCode(code).is_valid_on_wire(), "{code}");
        }
        for code in invalid {
            assert!(!CloseCode(code).is_valid_on_wire(), "{code}");
        }
    }

    #[test]
    fn opcodes_round_trip() {
        let known: Vec<u8> = (0..16).filter(|bits| Opcode::from_bits(*bits).is_some()).collect();
        assert_eq!(known, [0, 1, 2, 8, 9, 10]);
        for bits in known {
            let opcode = Opcode::from_bits(bits).expect("known");
            assert_eq!(opcode as u8, bits);
            assert_eq!(opcode.is_control(), bits >= 8);
        }
    }
}
