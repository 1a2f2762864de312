//! A record's body as JSON: a second encoding of the same sections, for people and tools.
//!
//! A section whose codec is known appears as the struct that it decodes to, any other one, and one
//! that its codec would not give back byte for byte, as its bytes in base64. Nothing is lost either
//! way, so that a record may go through JSON and back. Sections that hold keys never appear in it:
//! a record that has one stays binary.
//!
//! Must not know: what the sections mean; their owners bring the codecs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::pack::{put_u16, put_u32};
use super::read::{envelope, verify_checksum};
use super::{
    ENVELOPE_BYTES, FLAG_JSON, FLAGS_OFFSET, FORMAT_WRAPPED, FreezeInstant, Integrity,
    LENGTH_OFFSET, MAX_RECORD_BYTES, MAX_SECTIONS, Record, Section, StateError, Writer,
};

/// Tags of sections that hold key material (TLS).
pub const SECRET_TAGS: [u16; 4] = [10, 11, 24, 25];

/// Longest text of a record. What is decoded from it takes several times as much memory for a moment.
pub const MAX_JSON_BYTES: usize = 16 << 20;

/// A section's head and tail.
pub type Parts = (Vec<u8>, Vec<u8>);

/// How one kind of section is shown.
#[derive(Clone, Copy)]
pub struct JsonCodec {
    /// The section's tag.
    pub tag: u16,
    /// The section's name.
    pub name: &'static str,
    /// Decodes head and tail; `None` if they do not decode.
    pub to_json: fn(&Section<'_>) -> Option<Value>,
    /// Makes head and tail again.
    pub from_json: fn(&Value) -> Option<Parts>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(deserialize_with = "bounded")]
    sections: Vec<Shown>,
}

/// Not more sections than a record may have, however many there are in the text.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Shown>, D::Error> {
    struct Sections;
    impl<'de> Visitor<'de> for Sections {
        type Value = Vec<Shown>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "at most {MAX_SECTIONS} sections")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Shown>, A::Error> {
            let mut sections = Vec::new();
            while let Some(section) = list.next_element()? {
                if sections.len() == MAX_SECTIONS {
                    return Err(serde::de::Error::custom("too many sections"));
                }
                sections.push(section);
            }
            Ok(sections)
        }
    }
    deserializer.deserialize_seq(Sections)
}

#[derive(Serialize, Deserialize)]
struct Shown {
    tag: u16,
    /// For people; the tag counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    version: u16,
    #[serde(default)]
    optional: bool,
    /// The decoded struct; or else:
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    head: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    tail: String,
}

fn find(codecs: &[JsonCodec], tag: u16) -> Option<&JsonCodec> {
    codecs.iter().find(|codec| codec.tag == tag)
}

fn show(section: &Section<'_>, codecs: &[JsonCodec]) -> Shown {
    let codec = find(codecs, section.tag());
    let state = codec.and_then(|codec| {
        let state = (codec.to_json)(section)?;
        let (head, tail) = (codec.from_json)(&state)?;
        (head == section.head_bytes() && tail == section.tail()).then_some(state)
    });
    let (head, tail) = match state {
        Some(_) => (String::new(), String::new()),
        None => (STANDARD.encode(section.head_bytes()), STANDARD.encode(section.tail())),
    };
    Shown {
        tag: section.tag(),
        name: codec.map(|codec| codec.name.to_owned()),
        version: section.version(),
        optional: section.optional(),
        state,
        head,
        tail,
    }
}

/// Turns a plain record's body into JSON, in place; the checksum is left to whoever completes the
/// record. False, and the record is as it was: its format has no JSON, it is too large for it, or it
/// holds secrets.
pub fn to_json(record: &mut Vec<u8>, codecs: &[JsonCodec]) -> bool {
    let Ok(parsed) = Record::parse_checked(record, Integrity::Verified) else { return false };
    if parsed.format() < FORMAT_WRAPPED
        || parsed.sections().any(|section| SECRET_TAGS.contains(&section.tag()))
    {
        return false;
    }
    let sections = parsed.sections().map(|section| show(&section, codecs)).collect();
    let Ok(text) = serde_json::to_vec(&Document { sections }) else { return false };
    let length = ENVELOPE_BYTES + text.len();
    if text.len() > MAX_JSON_BYTES {
        return false;
    }
    record.truncate(ENVELOPE_BYTES);
    record.extend_from_slice(&text);
    put_u16(record, FLAGS_OFFSET, FLAG_JSON);
    put_u32(record, LENGTH_OFFSET, length as u32);
    true
}

/// Makes a record binary again, if it is JSON, in place.
///
/// # Errors
/// What is wrong with it.
pub fn from_json(
    record: &mut Vec<u8>,
    integrity: Integrity,
    codecs: &[JsonCodec],
) -> Result<Integrity, StateError> {
    let found = envelope(record)?;
    if found.flags != FLAG_JSON {
        return Ok(integrity); // the parser has the last word
    }
    if integrity == Integrity::Unknown {
        verify_checksum(record)?;
    }
    if record.len() - ENVELOPE_BYTES > MAX_JSON_BYTES {
        return Err(StateError::Json("longer than a record may be"));
    }
    let document: Document = serde_json::from_slice(&record[ENVELOPE_BYTES..])
        .map_err(|_| StateError::Json("no JSON of a record"))?;
    let bytes = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("8 bytes"));
    let freeze = FreezeInstant { boot_hash: bytes(16), boottime_ns: bytes(24) };
    let mut binary = Vec::new();
    let mut writer = Writer::new(&mut binary, freeze);
    let mut room = MAX_RECORD_BYTES - ENVELOPE_BYTES;
    for shown in &document.sections {
        if SECRET_TAGS.contains(&shown.tag) {
            return Err(StateError::Json("a section with secrets"));
        }
        let decode = |text: &str| {
            STANDARD.decode(text).map_err(|_| StateError::Json("bytes that are no base64"))
        };
        let (head, tail) = match &shown.state {
            None => (decode(&shown.head)?, decode(&shown.tail)?),
            Some(state) => find(codecs, shown.tag)
                .and_then(|codec| (codec.from_json)(state))
                .ok_or(StateError::Json("a section that does not decode"))?,
        };
        // More than the section's own frame and padding.
        room = room
            .checked_sub(head.len() + tail.len() + 64)
            .ok_or(StateError::Json("larger than a record may be"))?;
        writer.section_of(shown.tag, shown.version, shown.optional, &head, &[&tail]);
    }
    writer.finish_unchecked(found.format);
    *record = binary;
    Ok(Integrity::Verified)
}

/// For codecs: a struct as the whole head, with no tail.
pub fn head_to_json<T: bytemuck::Pod + Serialize>(section: &Section<'_>) -> Option<Value> {
    serde_json::to_value(section.head::<T>()).ok()
}

/// For codecs: undoes [`head_to_json`].
pub fn head_from_json<T: bytemuck::Pod + serde::de::DeserializeOwned>(
    value: &Value,
) -> Option<Parts> {
    let head: T = serde_json::from_value(value.clone()).ok()?;
    Some((bytemuck::bytes_of(&head).to_vec(), Vec::new()))
}
