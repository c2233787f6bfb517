#include "net/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace tessera::net {
namespace {

constexpr int kKeepaliveMs = 15000;
constexpr int kKeepaliveTimeoutMs = 10000;
constexpr int kMinReconnectMs = 100;
constexpr int kMaxReconnectMs = 1000;
// What gRPC calls its minimal reconnect back-off is the time it gives one attempt to connect.
constexpr int kConnectTimeoutMs = 5000;

}  // namespace

const std::vector<std::pair<const char*, int>>& bulk_settings() {
  static const std::vector<std::pair<const char*, int>> settings = {
      // Larger pieces: fewer headers to parse and fewer system calls. docs/performance.md has what
      // each gains.
      {GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20},
      {GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4 << 20},
  };
  return settings;
}

std::shared_ptr<grpc::Channel> open_channel(const std::string& address, size_t max_message_bytes) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(max_message_bytes));
  arguments.SetMaxSendMessageSize(static_cast<int>(max_message_bytes));
  for (const auto& [name, value] : bulk_settings()) arguments.SetInt(name, value);
  // A dead path is noticed without traffic, and a peer that is back is found quickly.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMinReconnectMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  // Each channel has its own connection: bulk doesn't stand in front of reports and probes.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Nodes speak to each other directly; a web proxy of the environment would not carry this.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // gRPC's own retries would send the same signed request twice, which the receiver takes for a
  // replay.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace tessera::net
