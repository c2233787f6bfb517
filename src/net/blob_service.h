// The blob service: a few threads do the disk's work behind a bounded queue.
#pragma once

#include <tessera/v1/blobs.grpc.pb.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "net/parked_calls.h"
#include "net/server_call.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/net/server.h"

namespace tessera::net {

using RawBlobStore =
    v1::BlobStore::WithRawCallbackMethod_HasBlobs<v1::BlobStore::WithRawCallbackMethod_PutBlobs<
        v1::BlobStore::WithRawCallbackMethod_GetBlobs<
            v1::BlobStore::WithRawCallbackMethod_ReadLedger<v1::BlobStore::Service>>>>;

class BlobService final : public RawBlobStore {
 public:
  // `backend` may be null (UNIMPLEMENTED).
  BlobService(std::shared_ptr<ServerCore> core, BlobBackend* backend, size_t threads,
              size_t max_queued);
  ~BlobService() override;
  // After the server is shut down: queued work is dropped (its calls are answered already), the
  // threads end.
  void stop();

  grpc::ServerUnaryReactor* HasBlobs(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* PutBlobs(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetBlobs(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ReadLedger(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  struct Job {
    ServerCallPtr call;
    ports::Caller caller;
    grpc::ByteBuffer request;
    void (BlobService::*work)(const Job&);
    bool waited = false;  // for what it asks; now what is there is its answer
  };
  grpc::ServerUnaryReactor* enqueue(const char* method, grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                    bool write, void (BlobService::*work)(const Job&));
  void serve();
  void has(const Job& job);
  void put(const Job& job);
  void get(const Job& job);
  // Whether the call waits now for what it asks and is not there.
  bool waits(const Job& job, const std::vector<Digest>& digests, uint32_t wait_ms);
  void hurry(std::vector<Job> jobs);
  void read_ledger(const Job& job);

  const std::shared_ptr<ServerCore> core_;
  BlobBackend* const backend_;
  BoundedQueue<Job> jobs_;
  ParkedCalls<Job> parked_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace tessera::net
