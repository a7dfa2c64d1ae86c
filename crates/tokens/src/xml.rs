//! XML, as far as a PSKC document needs it.
//!
//! Owns the bounds of nesting and size, and the refusal of DTDs and entities. Must never know what an element means. Names
//! are local ones: the drafts of RFC 6030 have a namespace each.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::XmlVersion::Implicit1_0;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use zeroize::Zeroizing;

use crate::error::ReadError;

/// Deepest nesting of elements.
const MAX_DEPTH: usize = 32;
/// Most attributes of an element.
const MAX_ATTRIBUTES: usize = 32;
/// Most tags and pieces of text in a child of the root.
const MAX_PARTS: usize = 100_000;

/// An element with all that is in it.
pub(crate) struct Element<'a> {
    name: String,
    attributes: Vec<(String, String)>,
    /// Borrowed from the document, which is not ours to wipe; only references are not.
    text: Vec<Cow<'a, str>>,
    children: Vec<Element<'a>>,
}

impl<'a> Element<'a> {
    fn new(start: &BytesStart) -> Result<Element<'a>, ReadError> {
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|_| ReadError::Xml)?;
            let value = attribute.normalized_value(Implicit1_0).map_err(|_| ReadError::Entity)?;
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(ReadError::Nesting);
            }
            attributes.push((attribute.key.local_name().as_ref().to_owned(), value.into_owned()));
        }
        let name = start.local_name().as_ref().to_owned();
        Ok(Element { name, attributes, text: Vec::new(), children: Vec::new() })
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Iterates over the children of any of these names.
    pub(crate) fn children(&self, names: &'static [&'static str]) -> impl Iterator<Item = &Element<'a>> {
        self.children.iter().filter(|child| names.contains(&child.name()))
    }

    /// Iterates over the names of the children.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.children.iter().map(Element::name)
    }

    /// Finds the first child of this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element<'a>> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Follows names down to an element.
    pub(crate) fn find(&self, path: &[&str]) -> Option<&Element<'a>> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// Finds the value of the first attribute of any of these names.
    pub(crate) fn attribute(&self, names: &[&str]) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.as_str())
    }

    /// Copies the text into a wiped buffer.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.text.iter().map(|piece| piece.len()).sum()));
        text.extend(self.text.iter().map(Cow::as_ref));
        text
    }
}

/// A document that is read from its start to its end.
pub(crate) struct Document<'a> {
    reader: Reader<&'a [u8]>,
}

impl<'a> Document<'a> {
    /// Begins.
    pub(crate) fn new(text: &'a str) -> Document<'a> {
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Document { reader }
    }

    /// Reads the start of the root.
    pub(crate) fn root(&mut self) -> Result<Element<'a>, ReadError> {
        loop {
            match self.event()? {
                Event::Start(start) => return Element::new(&start),
                Event::Text(text) if is_blank(&text) => {}
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                _ => return Err(ReadError::Xml),
            }
        }
    }

    /// Reads the next child of the root, with all that is in it. `None` at the end of the document.
    pub(crate) fn next_child(&mut self) -> Result<Option<Element<'a>>, ReadError> {
        loop {
            match self.event()? {
                Event::Start(start) => return self.rest_of(&start).map(Some),
                Event::End(_) => return self.finish().map(|()| None),
                Event::Text(text) if is_blank(&text) => {}
                Event::PI(_) | Event::Comment(_) => {}
                _ => return Err(ReadError::Xml),
            }
        }
    }

    /// Reads what may follow the root: nothing.
    fn finish(&mut self) -> Result<(), ReadError> {
        loop {
            match self.event()? {
                Event::Eof => return Ok(()),
                Event::Text(text) if is_blank(&text) => {}
                Event::PI(_) | Event::Comment(_) => {}
                _ => return Err(ReadError::Xml),
            }
        }
    }

    /// Reads up to the end of an element that has begun. Without recursion, so that no nesting fills the stack.
    fn rest_of(&mut self, start: &BytesStart) -> Result<Element<'a>, ReadError> {
        let mut element = Element::new(start)?;
        let mut open = Vec::new();
        for _ in 0..MAX_PARTS {
            match self.event()? {
                Event::Start(_) if open.len() == MAX_DEPTH - 2 => return Err(ReadError::Nesting), // the root is open too
                Event::Start(start) => open.push(std::mem::replace(&mut element, Element::new(&start)?)),
                Event::End(_) => match open.pop() {
                    None => return Ok(element),
                    Some(parent) => {
                        let child = std::mem::replace(&mut element, parent);
                        element.children.push(child);
                    }
                },
                Event::Text(text) => element.text.push(text.into_inner()),
                Event::CData(text) => element.text.push(text.into_inner()),
                Event::GeneralRef(reference) => element.text.push(resolve(&reference)?),
                Event::PI(_) | Event::Comment(_) => {}
                _ => return Err(ReadError::Xml),
            }
        }
        Err(ReadError::Nesting)
    }

    fn event(&mut self) -> Result<Event<'a>, ReadError> {
        match self.reader.read_event() {
            Ok(Event::DocType(_)) => Err(ReadError::Entity),
            Ok(event) => Ok(event),
            Err(_) => Err(ReadError::Xml),
        }
    }
}

/// Resolves a reference to a character, or to one of the five entities of XML itself.
fn resolve<'a>(reference: &BytesRef) -> Result<Cow<'a, str>, ReadError> {
    match reference.resolve_char_ref() {
        Ok(Some('\0')) | Err(_) => Err(ReadError::Xml),
        Ok(Some(character)) => Ok(character.to_string().into()),
        Ok(None) => resolve_xml_entity(reference).map(Cow::Borrowed).ok_or(ReadError::Entity),
    }
}

fn is_blank(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_whitespace())
}
