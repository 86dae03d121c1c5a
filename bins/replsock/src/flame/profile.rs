//! The file: what V8's profiler writes (`Profiler.Profile` of the DevTools protocol), read without trust.

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A profile. Times in microseconds.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Profile<'a> {
    /// The calling tree, in any order.
    #[serde(borrow)]
    pub nodes: Option<Vec<Node<'a>>>,
    /// When it began.
    pub start_time: Number,
    /// When it ended.
    pub end_time: Number,
    /// The node that ran, for each sample.
    pub samples: Option<Vec<Number>>,
    /// From each sample's predecessor (from the beginning) to it.
    pub time_deltas: Option<Vec<Number>>,
}

/// A function as it was called from its parent.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node<'a> {
    /// What samples and children name it by.
    pub id: Number,
    /// Which function.
    #[serde(borrow)]
    pub call_frame: Option<CallFrame<'a>>,
    /// In how many samples it ran itself.
    pub hit_count: Number,
    /// Whom it called.
    pub children: Option<Vec<Number>>,
    /// Who called it: instead of `children`, in traces.
    pub parent: Option<Number>,
}

/// A function.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CallFrame<'a> {
    /// Its name, empty where it has none.
    #[serde(borrow)]
    pub function_name: Text<'a>,
    /// Its file.
    #[serde(borrow)]
    pub url: Text<'a>,
    /// From 0; -1: none.
    pub line_number: Line,
}

impl<'a> Profile<'a> {
    /// Out of the bytes of a file.
    ///
    /// # Errors
    /// It is no JSON, or there are no nodes in it.
    pub fn read(bytes: &'a [u8]) -> Result<Profile<'a>, String> {
        let profile: Profile<'a> = serde_json::from_slice(bytes)
            .map_err(|why| format!("it is no .cpuprofile of V8: {why}"))?;
        if profile.nodes.as_ref().is_none_or(Vec::is_empty) {
            return Err("it is no .cpuprofile of V8: it has no nodes".to_owned());
        }
        Ok(profile)
    }
}

/// A number however it is written; what is no whole number is cut, `null` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Number(pub i64);

/// The same, with -1 where it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line(pub i64);

impl Default for Line {
    fn default() -> Line {
        Line(-1)
    }
}

struct AnyNumber;

impl Visitor<'_> for AnyNumber {
    type Value = Option<i64>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number")
    }

    fn visit_i64<E>(self, value: i64) -> Result<Option<i64>, E> {
        Ok(Some(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Option<i64>, E> {
        Ok(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Option<i64>, E> {
        // `as` goes to the nearest end of the range, and to 0 for NaN.
        Ok(Some(value as i64))
    }

    fn visit_unit<E>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        Ok(Number(from.deserialize_any(AnyNumber)?.unwrap_or(0)))
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Line, D::Error> {
        Ok(Line(from.deserialize_any(AnyNumber)?.unwrap_or(-1)))
    }
}

/// A string that need not be UTF-8: names are whatever the app has called its functions, half a surrogate
/// pair included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

struct AnyText;

impl<'de> Visitor<'de> for AnyText {
    type Value = Text<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Text<'de>, E> {
        Ok(Text(String::from_utf8_lossy(bytes)))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(
            String::from_utf8_lossy(bytes).into_owned(),
        )))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_none<E>(self) -> Result<Text<'de>, E> {
        Ok(Text::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Text<'de>, D::Error> {
        // serde_json gives the bytes of a string as they are only to whoever asks for bytes.
        from.deserialize_bytes(AnyText)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, _seq: A) -> Result<Text<'de>, A::Error> {
        Err(A::Error::custom("a list where a string should be"))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Text<'a>, D::Error> {
        from.deserialize_option(AnyText)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_null_or_of_a_newer_node() {
        let text = br#"{"nodes":[{"id":1,"new":[[{}]]},{"id":2.0,"callFrame":{"functionName":null,"url":null,"lineNumber":null},
            "hitCount":null,"children":null}],"samples":null,"endTime":1e300}"#;
        let profile = Profile::read(text).unwrap();
        let nodes = profile.nodes.unwrap();
        assert_eq!((nodes[0].id, nodes[1].id), (Number(1), Number(2)));
        let frame = nodes[1].call_frame.as_ref().unwrap();
        assert_eq!(frame.line_number, Line(-1));
        assert_eq!(profile.end_time.0, i64::MAX);
    }

    #[test]
    fn names_that_are_no_utf_8() {
        let text = b"{\"nodes\":[{\"id\":1,\"callFrame\":{\"functionName\":\"a\\ud800b\",\"url\":\"\xff\"}}]}";
        let profile = Profile::read(text).unwrap();
        let frame = profile.nodes.unwrap().remove(0).call_frame.unwrap();
        assert!(frame.function_name.0.starts_with('a') && frame.function_name.0.ends_with('b'));
        assert_eq!(frame.url.0, "\u{fffd}");
    }

    #[test]
    fn what_is_none_is_said() {
        for text in ["", "{}", "[]", "{\"nodes\":[]}", "{\"nodes\":3}", "nodes"] {
            let why = Profile::read(text.as_bytes()).unwrap_err();
            assert!(why.starts_with("it is no .cpuprofile"), "{text}: {why}");
        }
    }
}
