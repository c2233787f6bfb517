// gRPC's own log lines go to the program's log at debug level: what matters to a person is in the statuses. And its mutexes look for
// no deadlocks, as they do in Debian's build: 2 % of a merge's processor time, all of it under one lock.
#pragma once

namespace tessera::net {

// To be called before anything else of gRPC.
void prepare_grpc();

}  // namespace tessera::net
