// How channels to other nodes are set up, and how far both ends let bulk run ahead.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace tessera::net {

// A channel with a connection of its own. Connects at the first call, and again with pauses of 0.1
// to 1 s. Never retries a call.
std::shared_ptr<grpc::Channel> open_channel(const std::string& address, size_t max_message_bytes);

// gRPC's settings for connections that carry frames, for clients and servers.
const std::vector<std::pair<const char*, int>>& bulk_settings();

}  // namespace tessera::net
