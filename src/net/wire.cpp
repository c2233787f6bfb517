#include "net/wire.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/slice.h>

#include <charconv>
#include <memory>
#include <utility>
#include <vector>

#include "tessera/base/archive.h"

namespace tessera::net {
namespace {

constexpr size_t kMaxErrorBytes = 2048;

}  // namespace

grpc::Slice owning_slice(std::string bytes) {
  auto* owned = new std::string(std::move(bytes));
  return grpc::Slice(
      owned->data(), owned->size(), [](void* text) { delete static_cast<std::string*>(text); },
      owned);
}

grpc::ByteBuffer buffer_of(std::string bytes) {
  const grpc::Slice slice = owning_slice(std::move(bytes));
  return grpc::ByteBuffer(&slice, 1);
}

std::string serialize(const google::protobuf::MessageLite& message) {
  return message.SerializeAsString();
}

Status parse(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(buffer);  // of references to the slices: reading empties it
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader)) {
    return invalid_argument("the bytes are no {}; use the same version of Tessera on both sides",
                            message->GetTypeName());
  }
  return ok_status();
}

Digest digest_of_buffer(const grpc::ByteBuffer& buffer) {
  Hasher hasher;
  std::vector<grpc::Slice> slices;
  if (buffer.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) hasher.update(slice.begin(), slice.size());
  }
  return hasher.finish();
}

// The numbers of gRPC's and absl's codes are the same. The message travels in a header, which has a
// limit.
grpc::Status to_grpc(const Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      message_of(status).substr(0, kMaxErrorBytes));
}

Status from_grpc(const grpc::Status& status) {
  const int code = status.error_code();
  const bool known = code >= 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                status.error_message());
}

std::string hello_bytes(const std::string& nonce, uint32_t protocol_version,
                        const std::string& run_id, const NodeId& node) {
  Encoder encoder;
  encoder.write(std::string("tessera hello 1"));
  encoder.write(nonce);
  encoder.write(protocol_version);
  encoder.write(run_id);
  encoder.write(node);
  return encoder.take();
}

std::string version_mismatch(const std::string& here, uint32_t here_version,
                             const std::string& there, uint32_t there_version) {
  return fmt::format("{} speaks protocol version {}, {} speaks {}; upgrade {}", here, here_version,
                     there, there_version, here_version < there_version ? here : there);
}

std::string HostPort::text() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

StatusOr<HostPort> parse_address(const std::string& address) {
  const auto wrong = [&] {
    return invalid_argument("'{}' is no address; write host:port, for example 127.0.0.1:7700",
                            address);
  };
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || address.size() > 256) return wrong();
  HostPort result;
  result.host = address.substr(0, colon);
  if (result.host.front() == '[') {
    if (result.host.back() != ']' || result.host.size() < 3) return wrong();
    result.host = result.host.substr(1, result.host.size() - 2);
  } else if (result.host.find(':') != std::string::npos) {
    return wrong();  // an IPv6 address without brackets: which colon begins the port?
  }
  // A '/' or '%' would make it a target URI of another scheme for gRPC.
  if (result.host.find_first_of("/%,\\ ") != std::string::npos) return wrong();
  const char* const end = address.data() + address.size();
  const auto [last, problem] = std::from_chars(address.data() + colon + 1, end, result.port);
  if (problem != std::errc() || last != end || result.port < 0 || result.port > 65535) {
    return wrong();
  }
  return result;
}

}  // namespace tessera::net
