//! gRPC's reflection service: tells clients such as grpcurl what is served and how its messages look. etcd has none. Knows
//! only the descriptors that the protos compile to.

use std::sync::LazyLock;

use bytes::Bytes;
use daymark_api::DESCRIPTORS;
use daymark_api::grpc::reflection::v1 as pb;
use futures_util::StreamExt;
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

use crate::error::{Code, Error};
use crate::request::{MessageParts, RequestStream, Sink};

use pb::server_reflection_request::MessageRequest as Asked;
use pb::server_reflection_response::MessageResponse as Told;

/// Serves one stream of questions: one answer each, in order.
pub(crate) async fn serve(mut requests: RequestStream<pb::ServerReflectionRequest>, sink: Sink) {
    while let Some(request) = requests.next().await {
        let request = match request {
            Ok(request) => request,
            Err(error) => return sink.finish(Err(error)),
        };
        let Some(asked) = &request.message_request else {
            return sink.finish(Err(Error::ReflectionNothingAsked));
        };
        let told = Files::get().answer(asked);
        let response = pb::ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(told),
        };
        sink.wait_for_credit().await;
        sink.push(MessageParts::from_iter([response.encode_to_vec().into()]));
    }
}

/// One proto file.
struct File {
    name: String,
    /// Its descriptor, encoded.
    bytes: Bytes,
    imports: Vec<String>,
    /// Full names of what it declares.
    symbols: Vec<String>,
    services: Vec<String>,
}

struct Files {
    files: Vec<File>,
}

impl Files {
    fn get() -> &'static Self {
        static FILES: LazyLock<Files> = LazyLock::new(|| {
            // They are written by the build, and a test reads them.
            let set = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors of the build");
            Files { files: set.file.iter().map(File::read).collect() }
        });
        &FILES
    }

    fn answer(&self, asked: &Asked) -> Told {
        let file = match asked {
            Asked::FileByFilename(name) => self.files.iter().find(|file| file.name == *name),
            Asked::FileContainingSymbol(symbol) => self.files.iter().find(|file| file.symbols.contains(symbol)),
            Asked::ListServices(_) => {
                let mut names: Vec<&String> = self.files.iter().flat_map(|file| &file.services).collect();
                names.sort_unstable();
                let service = names.into_iter().map(|name| pb::ServiceResponse { name: name.clone() }).collect();
                return Told::ListServicesResponse(pb::ListServiceResponse { service });
            }
            // proto3 has no extensions.
            Asked::AllExtensionNumbersOfType(name) if self.files.iter().any(|file| file.symbols.contains(name)) => {
                let base_type_name = name.clone();
                let none = pb::ExtensionNumberResponse { base_type_name, extension_number: Vec::new() };
                return Told::AllExtensionNumbersResponse(none);
            }
            Asked::FileContainingExtension(_) | Asked::AllExtensionNumbersOfType(_) => None,
        };
        match file {
            Some(file) => {
                let mut found = vec![file];
                self.add_imports(file, &mut found);
                let file_descriptor_proto = found.into_iter().map(|file| file.bytes.clone()).collect();
                Told::FileDescriptorResponse(pb::FileDescriptorResponse { file_descriptor_proto })
            }
            None => Told::ErrorResponse(pb::ErrorResponse {
                error_code: Code::NotFound as i32,
                error_message: "no such file, symbol or extension is known here".into(),
            }),
        }
    }

    fn add_imports<'a>(&'a self, file: &'a File, found: &mut Vec<&'a File>) {
        for name in &file.imports {
            let import = self.files.iter().find(|file| file.name == *name);
            if let Some(import) = import.filter(|import| found.iter().all(|known| known.name != import.name)) {
                found.push(import);
                self.add_imports(import, found);
            }
        }
    }
}

impl File {
    fn read(proto: &FileDescriptorProto) -> Self {
        let package = proto.package();
        let (mut symbols, mut services) = (Vec::new(), Vec::new());
        for message in &proto.message_type {
            collect(package, message, &mut symbols);
        }
        symbols.extend(proto.enum_type.iter().map(|enumeration| format!("{package}.{}", enumeration.name())));
        for service in &proto.service {
            let name = format!("{package}.{}", service.name());
            symbols.extend(service.method.iter().map(|method| format!("{name}.{}", method.name())));
            symbols.push(name.clone());
            services.push(name);
        }
        let (name, imports) = (proto.name().to_owned(), proto.dependency.clone());
        Self { name, bytes: proto.encode_to_vec().into(), imports, symbols, services }
    }
}

fn collect(scope: &str, message: &DescriptorProto, symbols: &mut Vec<String>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, symbols);
    }
    symbols.extend(message.enum_type.iter().map(|enumeration| format!("{name}.{}", enumeration.name())));
    symbols.extend(message.field.iter().map(|field| format!("{name}.{}", field.name())));
    symbols.push(name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Rpc;

    fn files(asked: Asked) -> Vec<FileDescriptorProto> {
        let Told::FileDescriptorResponse(response) = Files::get().answer(&asked) else { panic!("no files: {asked:?}") };
        let read = |bytes: &Bytes| FileDescriptorProto::decode(bytes.clone()).expect("a descriptor");
        response.file_descriptor_proto.iter().map(read).collect()
    }

    #[test]
    fn all_services_are_listed_and_found_with_what_they_import() {
        let Told::ListServicesResponse(list) = Files::get().answer(&Asked::ListServices("*".into())) else { panic!() };
        let listed: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
        for rpc in Rpc::ALL {
            assert!(listed.contains(&rpc.service()), "{rpc:?}");
            let symbol = format!("{}.{}", rpc.service(), rpc.method());
            assert!(!files(Asked::FileContainingSymbol(symbol)).is_empty());
        }
        for symbol in ["etcdserverpb.KV", "etcdserverpb.Compare.CompareResult", "etcdserverpb.TxnRequest.compare"] {
            let names: Vec<String> =
                files(Asked::FileContainingSymbol(symbol.into())).iter().map(|file| file.name().into()).collect();
            assert_eq!(names, ["etcdserverpb/rpc.proto", "authpb/auth.proto", "mvccpb/kv.proto"], "{symbol}");
        }
        assert_eq!(files(Asked::FileByFilename("mvccpb/kv.proto".into())).len(), 1);
    }

    #[test]
    fn what_is_not_there_is_said_to_be_not_there() {
        for asked in [
            Asked::FileByFilename("nothing.proto".into()),
            Asked::FileContainingSymbol("etcdserverpb.Nothing".into()),
            Asked::FileContainingExtension(pb::ExtensionRequest::default()),
            Asked::AllExtensionNumbersOfType("etcdserverpb.Nothing".into()),
        ] {
            let Told::ErrorResponse(error) = Files::get().answer(&asked) else { panic!("{asked:?}") };
            assert_eq!(error.error_code, 5);
        }
        let known = Asked::AllExtensionNumbersOfType("mvccpb.KeyValue".into());
        assert!(matches!(Files::get().answer(&known), Told::AllExtensionNumbersResponse(_)));
    }
}
