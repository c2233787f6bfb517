// gRPC's own log lines go to the program's log at debug level: what matters to a person is in the
// statuses.
#pragma once

namespace tessera::net {

void quiet_grpc_logging();

}  // namespace tessera::net
