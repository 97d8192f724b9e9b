//! What the protos declare, and which branches of it an encoded message holds.

use std::collections::{BTreeMap, BTreeSet};

use countersign_api::{Message as _, envoy, v1, workload};
use prost_types::field_descriptor_proto::Type;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
};

/// Messages by their full names, and the calls.
pub(crate) struct Descriptors {
    messages: BTreeMap<String, DescriptorProto>,
    /// Of which call a message is the input or the output.
    calls: BTreeSet<String>,
}

impl Descriptors {
    /// All that are served or called here.
    pub(crate) fn ours() -> Self {
        let (mut messages, mut calls) = (BTreeMap::new(), BTreeSet::new());
        let sets =
            [v1::FILE_DESCRIPTOR_SET, workload::FILE_DESCRIPTOR_SET, envoy::FILE_DESCRIPTOR_SET];
        for set in sets {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for message in &file.message_type {
                    put(&mut messages, file.package(), message);
                }
                for service in &file.service {
                    calls.extend(service.method.iter().flat_map(ends));
                }
            }
        }
        Self { messages, calls }
    }

    /// As if a call were added.
    pub(crate) fn add_call(&mut self, service: &str, name: &str, (asks, told): (&str, &str)) {
        let (package, _) = service.rsplit_once('.').unwrap();
        for message in [asks, told] {
            self.messages.insert(format!("{package}.{message}"), DescriptorProto::default());
        }
        let of = |message| Some(format!(".{package}.{message}"));
        let (input_type, output_type) = (of(asks), of(told));
        let name = Some(name.to_owned());
        let method = MethodDescriptorProto { name, input_type, output_type, ..Default::default() };
        self.calls.extend(ends(&method));
    }

    /// What travels by itself: in calls, or a part of nothing else.
    pub(crate) fn outside(&self) -> BTreeSet<String> {
        let fields = self.messages.values().flat_map(|message| &message.field);
        let parts: BTreeSet<&str> = fields.map(type_of).collect();
        let alone = self.messages.iter().filter(|(name, message)| {
            let map = message.options.as_ref().is_some_and(|options| options.map_entry());
            !map && !parts.contains(name.as_str())
        });
        alone.map(|(name, _)| name.clone()).chain(self.calls.iter().cloned()).collect()
    }

    /// Every branch of this message, and of those in it.
    pub(crate) fn branches(&self, message: &str, found: &mut BTreeSet<String>) {
        let mut left = vec![message.to_owned()];
        let mut known = BTreeSet::new();
        while let Some(name) = left.pop() {
            if !known.insert(name.clone()) {
                continue;
            }
            let Some(descriptor) = self.messages.get(&name) else { continue };
            for field in &descriptor.field {
                if field.oneof_index.is_some() {
                    found.insert(format!("{name}.{}", field.name()));
                }
                if field.r#type() == Type::Message {
                    left.push(type_of(field).to_owned());
                }
            }
        }
    }

    /// Which branches an encoded message has.
    pub(crate) fn walk(&self, message: &str, bytes: &[u8], seen: &mut BTreeSet<String>) {
        let Some(descriptor) = self.messages.get(message) else { return };
        let mut rest = bytes;
        while let Some((number, value)) = next(&mut rest) {
            let field = descriptor.field.iter().find(|field| field.number() == number);
            let Some(field) = field else { continue };
            if field.oneof_index.is_some() {
                seen.insert(format!("{message}.{}", field.name()));
            }
            if field.r#type() == Type::Message {
                self.walk(type_of(field), value, seen);
            }
        }
    }
}

fn put(messages: &mut BTreeMap<String, DescriptorProto>, within: &str, message: &DescriptorProto) {
    let name = match within {
        "" => message.name().to_owned(),
        within => format!("{within}.{}", message.name()),
    };
    for nested in &message.nested_type {
        put(messages, &name, nested);
    }
    messages.insert(name, message.clone());
}

fn ends(method: &MethodDescriptorProto) -> [String; 2] {
    [method.input_type(), method.output_type()].map(|name| name.trim_start_matches('.').to_owned())
}

fn type_of(field: &FieldDescriptorProto) -> &str {
    field.type_name().trim_start_matches('.')
}

/// The next field: its number, and its bytes where it has a length.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(i32, &'a [u8])> {
    let key = varint(rest)?;
    let number = i32::try_from(key >> 3).ok()?;
    let length = match key & 7 {
        0 => {
            varint(rest)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(rest)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (value, more) = rest.split_at_checked(length)?;
    *rest = more;
    Some((number, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, more) = rest.split_first()?;
        *rest = more;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
