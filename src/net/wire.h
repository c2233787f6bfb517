// The bytes of gRPC messages: limits, method names, buffers, statuses.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>
#include <grpcpp/support/status.h>

#include <string>

#include "tessera/base/crypto.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::net {

inline constexpr char kHelloMethod[] = "/tessera.v1.Orchestrator/Hello";
inline constexpr char kRegisterMethod[] = "/tessera.v1.Orchestrator/Register";
inline constexpr char kSyncMethod[] = "/tessera.v1.Orchestrator/Sync";
inline constexpr char kQueryMethod[] = "/tessera.v1.Orchestrator/Query";
inline constexpr char kCommandMethod[] = "/tessera.v1.Orchestrator/Command";
inline constexpr char kValidateMethod[] = "/tessera.v1.Orchestrator/Validate";
inline constexpr char kHasBlobsMethod[] = "/tessera.v1.BlobStore/HasBlobs";
inline constexpr char kPutBlobsMethod[] = "/tessera.v1.BlobStore/PutBlobs";
inline constexpr char kGetBlobsMethod[] = "/tessera.v1.BlobStore/GetBlobs";
inline constexpr char kReadLedgerMethod[] = "/tessera.v1.BlobStore/ReadLedger";
inline constexpr char kExchangeMethod[] = "/tessera.v1.Peer/Exchange";
inline constexpr char kProbeMethod[] = "/tessera.v1.Peer/Probe";

inline constexpr size_t kMaxControlBytes = 4 << 20;  // one message of Orchestrator or BlobStore
inline constexpr size_t kMaxBlobsPerCall = 256;
inline constexpr size_t kMaxBlobCallBytes = 2 << 20;  // content of one call
inline constexpr size_t kMaxPeerMessageBytes = 1 << 20;  // of Peer: a record, a probe
inline constexpr size_t kHelloNonceBytes = 16;

// Nothing is copied: the bytes live as long as the slice.
grpc::Slice owning_slice(std::string bytes);
grpc::ByteBuffer buffer_of(std::string bytes);
std::string serialize(const google::protobuf::MessageLite& message);
// INVALID_ARGUMENT if the bytes are no such message.
Status parse(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message);
Digest digest_of_buffer(const grpc::ByteBuffer& buffer);

grpc::Status to_grpc(const Status& status);
Status from_grpc(const grpc::Status& status);

// What a server signs in its Hello: proof that it holds the key of the id it tells.
std::string hello_bytes(const std::string& nonce, uint32_t protocol_version,
                        const std::string& run_id, const NodeId& node);

// "tessera 0.1 speaks protocol 1, ...; upgrade ...", naming the older side. `here` and `there`
// describe the programs.
std::string version_mismatch(const std::string& here, uint32_t here_version,
                             const std::string& there, uint32_t there_version);

// host:port, [ipv6]:port; nothing else.
struct HostPort {
  std::string host;  // without brackets
  int port = 0;
  std::string text() const;
};
StatusOr<HostPort> parse_address(const std::string& address);

}  // namespace tessera::net
