//! The messages of the API as data: fields, types and names, read once from the descriptors that the protos compile to.
//! Only what their JSON form needs.

use std::sync::LazyLock;

use daymark_api::DESCRIPTORS;
use hashbrown::HashMap;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

/// Place of a message in [`Schema`].
pub(crate) type MessageId = usize;

/// All messages and enums of the API.
pub(crate) struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enum>,
    /// By full name, without a leading dot.
    #[cfg(test)]
    message_ids: HashMap<String, MessageId>,
    /// Request and response of each method, by service and method.
    methods: HashMap<(String, String), (MessageId, MessageId)>,
}

/// A message type.
pub(crate) struct Message {
    /// In the order of their declaration, in which JSON shows them.
    pub fields: Vec<Field>,
    by_name: HashMap<String, usize>,
    by_number: HashMap<u32, usize>,
}

/// A field of a message.
pub(crate) struct Field {
    pub number: u32,
    /// As declared, which is how JSON spells it on the way out.
    pub name: String,
    /// In lower camel case, as messages about bad input spell it.
    pub json_name: String,
    pub kind: Kind,
    pub is_repeated: bool,
    /// The union that it belongs to.
    pub oneof: Option<Oneof>,
}

/// A union of fields, of which one may be set.
#[derive(Clone)]
pub(crate) struct Oneof {
    pub index: i32,
    pub full_name: String,
}

/// The type of a field, as far as the API uses them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    String,
    Bytes,
    Enum(usize),
    Message(MessageId),
}

/// An enum type: names and numbers of its values.
pub(crate) struct Enum {
    values: Vec<(String, i32)>,
}

impl Enum {
    /// The name of a number.
    pub fn name(&self, number: i32) -> Option<&str> {
        self.values.iter().find(|value| value.1 == number).map(|value| &*value.0)
    }

    /// The number of a name.
    pub fn number(&self, name: &str) -> Option<i32> {
        self.values.iter().find(|value| value.0 == name).map(|value| value.1)
    }

    /// The numbers that have names.
    #[cfg(test)]
    pub fn numbers(&self) -> impl Iterator<Item = i32> {
        self.values.iter().map(|value| value.1)
    }
}

impl Message {
    /// The field of either of its names.
    pub fn field_by_name(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).map(|place| &self.fields[*place])
    }

    /// The place in `fields` of a number.
    pub fn place_of(&self, number: u32) -> Option<usize> {
        self.by_number.get(&number).copied()
    }
}

impl Schema {
    /// The schema of this build.
    pub fn get() -> &'static Self {
        static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
            // They are written by the build, and a test reads them all.
            Schema::read(&FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors of the build"))
        });
        &SCHEMA
    }

    /// A message type.
    pub fn message(&self, id: MessageId) -> &Message {
        &self.messages[id]
    }

    /// An enum type.
    pub fn enumeration(&self, id: usize) -> &Enum {
        &self.enums[id]
    }

    /// The request and the response of a method.
    pub fn method(&self, service: &str, method: &str) -> Option<(MessageId, MessageId)> {
        self.methods.get(&(service.to_owned(), method.to_owned())).copied()
    }

    /// A message by its full name.
    #[cfg(test)]
    pub fn id_of(&self, full_name: &str) -> MessageId {
        self.message_ids[full_name]
    }

    /// All messages by their full names.
    #[cfg(test)]
    pub fn names(&self) -> impl Iterator<Item = (&str, MessageId)> {
        self.message_ids.iter().map(|(name, id)| (&**name, *id))
    }

    fn read(set: &FileDescriptorSet) -> Self {
        let (mut protos, mut enum_protos) = (Vec::new(), Vec::new());
        for file in &set.file {
            collect(file.package(), &file.message_type, &file.enum_type, &mut protos, &mut enum_protos);
        }
        let message_ids: HashMap<_, _> = protos.iter().enumerate().map(|(id, (name, _))| (name.clone(), id)).collect();
        let enum_ids: HashMap<_, _> =
            enum_protos.iter().enumerate().map(|(id, (name, _))| (name.clone(), id)).collect();
        let messages = protos.iter().map(|(name, proto)| read_message(name, proto, &message_ids, &enum_ids)).collect();
        let enums = enum_protos.iter().map(|(_, proto)| Enum {
            values: proto.value.iter().map(|value| (value.name().to_owned(), value.number())).collect(),
        });
        let mut methods = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let id = |name: &str| message_ids[name.trim_start_matches('.')];
                    let name = (format!("{}.{}", file.package(), service.name()), method.name().to_owned());
                    methods.insert(name, (id(method.input_type()), id(method.output_type())));
                }
            }
        }
        Self {
            messages,
            enums: enums.collect(),
            #[cfg(test)]
            message_ids,
            methods,
        }
    }
}

fn collect<'a>(
    scope: &str,
    messages: &'a [DescriptorProto],
    enums: &'a [EnumDescriptorProto],
    all_messages: &mut Vec<(String, &'a DescriptorProto)>,
    all_enums: &mut Vec<(String, &'a EnumDescriptorProto)>,
) {
    all_enums.extend(enums.iter().map(|proto| (format!("{scope}.{}", proto.name()), proto)));
    for proto in messages {
        let name = format!("{scope}.{}", proto.name());
        collect(&name, &proto.nested_type, &proto.enum_type, all_messages, all_enums);
        all_messages.push((name, proto));
    }
}

fn read_message(
    full_name: &str,
    proto: &DescriptorProto,
    messages: &HashMap<String, MessageId>,
    enums: &HashMap<String, usize>,
) -> Message {
    let fields = proto.field.iter().map(|field| {
        let type_name = field.type_name().trim_start_matches('.');
        let kind = match field.r#type() {
            Type::Bool => Kind::Bool,
            Type::Int32 => Kind::Int32,
            Type::Int64 => Kind::Int64,
            Type::Uint32 => Kind::Uint32,
            Type::Uint64 => Kind::Uint64,
            Type::String => Kind::String,
            Type::Bytes => Kind::Bytes,
            Type::Enum => Kind::Enum(enums[type_name]),
            Type::Message => Kind::Message(messages[type_name]),
            other => panic!("the JSON form has no {other:?}, which {full_name}.{} is", field.name()),
        };
        let oneof = field.oneof_index.map(|index| Oneof {
            index,
            full_name: format!("{full_name}.{}", proto.oneof_decl[index as usize].name()),
        });
        Field {
            number: field.number() as u32,
            name: field.name().to_owned(),
            json_name: field.json_name().to_owned(),
            kind,
            is_repeated: field.label() == Label::Repeated,
            oneof,
        }
    });
    let fields: Vec<Field> = fields.collect();
    let mut by_name = HashMap::new();
    // The camel case name wins where two fields share a spelling.
    by_name.extend(fields.iter().enumerate().map(|(place, field)| (field.name.clone(), place)));
    by_name.extend(fields.iter().enumerate().map(|(place, field)| (field.json_name.clone(), place)));
    let by_number = fields.iter().enumerate().map(|(place, field)| (field.number, place)).collect();
    Message { fields, by_name, by_number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Rpc;

    #[test]
    fn every_method_has_its_messages() {
        let schema = Schema::get();
        for rpc in Rpc::ALL {
            assert!(schema.method(rpc.service(), rpc.method()).is_some(), "{rpc:?}");
        }
    }

    #[test]
    fn fields_have_both_names() {
        let schema = Schema::get();
        let range = schema.message(schema.id_of("etcdserverpb.RangeRequest"));
        for name in ["range_end", "rangeEnd"] {
            assert_eq!(range.field_by_name(name).map(|field| field.number), Some(2));
        }
        let response = schema.message(schema.id_of("etcdserverpb.WatchResponse"));
        assert_eq!(response.fields.last().map(|field| (&*field.name, field.number)), Some(("events", 11)));
        let compare = schema.message(schema.id_of("etcdserverpb.Compare"));
        let oneof = compare.field_by_name("version").and_then(|field| field.oneof.clone()).expect("a union");
        assert_eq!(oneof.full_name, "etcdserverpb.Compare.target_union");
    }
}
