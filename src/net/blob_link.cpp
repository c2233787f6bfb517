#include <tessera/v1/blobs.pb.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <set>
#include <utility>

#include "net/batch_calls.h"
#include "net/blob_bodies.h"
#include "net/orchestrator_endpoint.h"
#include "net/proto_fields.h"
#include "tessera/net/links.h"

namespace tessera::net {
namespace {

constexpr size_t kCallsUnderWay = 4;

// One put() or get(): who is asked, and until when.
struct Operation {
  HelloInfo server;
  TimeMs deadline_ms = 0;
};

class BlobClient final : public GrpcBlobLink {
 public:
  explicit BlobClient(BlobLinkOptions options)
      : deadline_ms_(options.deadline_ms),
        policy_{kCallsUnderWay, options.call_timeout_ms, options.min_backoff_ms,
                options.max_backoff_ms},
        endpoint_("blob server", options.server, options.signer, options.software,
                  options.expected_server),
        puts_("blob server", options.server, options.signer, options.software,
              options.expected_server) {}

  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override {
    std::vector<Digest> digests;
    digests.reserve(blobs.size());
    std::map<Digest, size_t> distinct;  // where its content is
    for (size_t i = 0; i < blobs.size(); ++i) {
      TESSERA_RETURN_IF_ERROR(check_size(blobs[i]));
      digests.push_back(digest_of(blobs[i]));
      distinct.emplace(digests.back(), i);
    }
    TESSERA_RETURN_IF_ERROR(with_server([&](const Operation& operation) -> Status {
      std::deque<size_t> missing;
      TESSERA_RETURN_IF_ERROR(find_missing(operation, distinct, &missing));
      return send_contents(operation, blobs, digests, missing);
    }));
    return digests;
  }

  Status put_new(const std::vector<Digest>& names, const std::vector<std::string>& blobs) override {
    TESSERA_CHECK(names.size() == blobs.size());
    for (const std::string& blob : blobs) TESSERA_RETURN_IF_ERROR(check_size(blob));
    return with_server([&](const Operation& operation) -> Status {
      std::deque<size_t> all;
      for (size_t i = 0; i < blobs.size(); ++i) all.push_back(i);
      return send_contents(operation, blobs, names, all);
    });
  }

  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    Contents contents(digests.size());
    TESSERA_RETURN_IF_ERROR(fetch_all(digests, std::nullopt, &contents));
    std::vector<std::string> all;
    all.reserve(contents.size());
    for (std::optional<std::string>& content : contents) all.push_back(*std::move(content));
    return all;
  }

  StatusOr<std::vector<std::optional<std::string>>> get_present(
      const std::vector<Digest>& digests, uint32_t wait_ms) override {
    Contents contents(digests.size());
    TESSERA_RETURN_IF_ERROR(fetch_all(digests, wait_ms, &contents));
    return contents;
  }

 private:
  using Contents = std::vector<std::optional<std::string>>;

  static Status check_size(const std::string& blob) {
    if (blob.size() <= kMaxBlobBytes) return ok_status();
    return invalid_argument("a blob has {} bytes, at most {} are allowed; cut it into chunks", blob.size(),
                            kMaxBlobBytes);
  }

  // A server whose run changed takes no signature for the old one: greet it again, once.
  Status with_server(const std::function<Status(const Operation&)>& work) {
    const TimeMs deadline_ms = monotonic_now_ms() + deadline_ms_;
    Operation operation;
    operation.deadline_ms = deadline_ms;
    TESSERA_ASSIGN_OR_RETURN(operation.server, greet(deadline_ms, false));
    Status status = work(operation);
    if (!absl::IsUnauthenticated(status)) return status;
    TESSERA_ASSIGN_OR_RETURN(operation.server, greet(deadline_ms, true));
    return work(operation);
  }

  StatusOr<HelloInfo> greet(TimeMs deadline_ms, bool again) {
    if (const auto known = endpoint_.known(); known && !again) return *known;
    // Through the batch for its retries: the server may be starting.
    StatusOr<HelloInfo> info = unavailable("{}: no answer", endpoint_.name());
    bool started = false;
    const auto info_slot = std::make_shared<StatusOr<HelloInfo>>(std::move(info));
    TESSERA_RETURN_IF_ERROR(run_batch(policy_, deadline_ms, [&]() -> std::optional<BatchCall> {
      if (std::exchange(started, true)) return std::nullopt;
      return BatchCall{[this, info_slot](uint32_t timeout_ms,
                                         std::function<void(StatusOr<grpc::ByteBuffer>)> done) {
                         endpoint_.hello(timeout_ms, [info_slot, done = std::move(done)](
                                                         StatusOr<HelloInfo> answer) {
                           *info_slot = std::move(answer);
                           done(info_slot->ok() ? StatusOr<grpc::ByteBuffer>(grpc::ByteBuffer())
                                                : StatusOr<grpc::ByteBuffer>(info_slot->status()));
                         });
                       },
                       [](const grpc::ByteBuffer&) { return ok_status(); }};
    }));
    return *info_slot;
  }

  BatchCall make_call(const Operation& operation, const char* method, std::string request,
                      std::function<Status(const grpc::ByteBuffer&)> take, BodyDigests digests = {}) {
    // References to the bytes, so a second attempt costs no copy.
    return BatchCall{
        [this, server = operation.server, method, buffer = buffer_of(std::move(request)), digests = std::move(digests)](
            uint32_t timeout_ms, std::function<void(StatusOr<grpc::ByteBuffer>)> done) {
          (method == kPutBlobsMethod ? puts_ : endpoint_).call(method, buffer, server.node, server.run_id, std::string(), timeout_ms,
                         std::move(done), digests);
        },
        std::move(take)};
  }

  Status wrong_answer(const char* what) const {
    return data_loss("{}: its answer is wrong: {}", endpoint_.name(), what);
  }

  Status find_missing(const Operation& operation, const std::map<Digest, size_t>& distinct,
                      std::deque<size_t>* missing) {
    auto position = distinct.begin();
    return run_batch(policy_, operation.deadline_ms, [&]() -> std::optional<BatchCall> {
      if (position == distinct.end()) return std::nullopt;
      v1::HasBlobsRequest request;
      std::vector<size_t> asked;
      for (; position != distinct.end() && asked.size() < kMaxBlobsPerCall; ++position) {
        request.add_digests(bytes_of(position->first));
        asked.push_back(position->second);
      }
      return make_call(
          operation, kHasBlobsMethod, serialize(request),
          [this, asked = std::move(asked), missing](const grpc::ByteBuffer& bytes) -> Status {
            v1::HasBlobsAnswer answer;
            TESSERA_RETURN_IF_ERROR(parse(bytes, &answer));
            if (answer.present_size() != static_cast<int>(asked.size())) {
              return wrong_answer("another number of blobs than asked for");
            }
            for (size_t i = 0; i < asked.size(); ++i) {
              if (!answer.present(static_cast<int>(i))) missing->push_back(asked[i]);
            }
            return ok_status();
          });
    });
  }

  Status send_contents(const Operation& operation, const std::vector<std::string>& blobs,
                       const std::vector<Digest>& digests, std::deque<size_t>& missing) {
    return run_batch(policy_, operation.deadline_ms, [&]() -> std::optional<BatchCall> {
      if (missing.empty()) return std::nullopt;
      std::vector<size_t> sent;
      std::vector<Digest> names;
      size_t bytes = 0;
      while (!missing.empty() && sent.size() < kMaxBlobsPerCall) {
        const size_t next = missing.front();
        if (!sent.empty() && bytes + blobs[next].size() > kMaxBlobCallBytes) break;
        bytes += blobs[next].size();
        sent.push_back(next);
        names.push_back(digests[next]);
        missing.pop_front();
      }
      std::string request;
      request.reserve(bytes + 8 * sent.size());
      for (const size_t i : sent) append_content(blobs[i], &request);
      return make_call(
          operation, kPutBlobsMethod, std::move(request),
          [this, sent = std::move(sent), &digests](const grpc::ByteBuffer& buffer) -> Status {
            v1::PutBlobsAnswer answer;
            TESSERA_RETURN_IF_ERROR(parse(buffer, &answer));
            if (answer.digests_size() != static_cast<int>(sent.size())) {
              return wrong_answer("another number of digests than blobs sent");
            }
            for (size_t i = 0; i < sent.size(); ++i) {
              if (answer.digests(static_cast<int>(i)) != digests[sent[i]].view()) {
                return wrong_answer("it stored a blob under another digest than its own");
              }
            }
            return ok_status();
          },
          {contents_digest(names), nullptr});
    });
  }

  // The bytes of a blob are not known before it is here: the calls grow with the mean size of those
  // that came.
  struct SizeEstimate {
    size_t blobs = 0;
    size_t bytes = 0;
    size_t per_call() const {
      if (blobs == 0) return kMaxBlobCallBytes / kMaxBlobBytes;
      const size_t mean = std::max<size_t>(bytes / blobs, 1);
      return std::clamp<size_t>(kMaxBlobCallBytes / mean, 1, kMaxBlobsPerCall);
    }
  };

  // `wait_ms`: if some may be missing.
  Status fetch_all(const std::vector<Digest>& digests, std::optional<uint32_t> wait_ms, Contents* contents) {
    std::deque<size_t> wanted;
    for (size_t i = 0; i < digests.size(); ++i) wanted.push_back(i);
    return with_server([&](const Operation& operation) {
      return fetch(operation, digests, wanted, wait_ms, contents);
    });
  }

  Status fetch(const Operation& operation, const std::vector<Digest>& digests,
               std::deque<size_t> wanted, std::optional<uint32_t> wait_ms, Contents* contents) {
    SizeEstimate sizes{mean_bytes_ == 0 ? size_t{0} : size_t{1}, mean_bytes_};
    const Status status = run_batch(policy_, operation.deadline_ms, [&]() -> std::optional<BatchCall> {
      if (wanted.empty()) return std::nullopt;
      v1::GetBlobsRequest request;
      std::vector<size_t> asked;
      while (!wanted.empty() && asked.size() < sizes.per_call()) {
        request.add_digests(bytes_of(digests[wanted.front()]));
        asked.push_back(wanted.front());
        wanted.pop_front();
      }
      request.set_wait_ms(wait_ms.value_or(0));
      // Read where its signature is checked, on the way in; one answer of an attempt at a time.
      const auto answer = std::make_shared<v1::GetBlobsAnswer>();
      const auto read = [answer](const grpc::ByteBuffer& buffer) { return read_blobs_answer(buffer, answer.get()); };
      return make_call(
          operation, kGetBlobsMethod, serialize(request),
          [this, answer, asked = std::move(asked), &digests, &wanted, &sizes, may_miss = wait_ms.has_value(), contents](const grpc::ByteBuffer&) {
            return take_contents(answer.get(), asked, digests, may_miss, &wanted, &sizes, contents);
          },
          {std::nullopt, read});
    });
    if (sizes.blobs > 0) mean_bytes_ = sizes.bytes / sizes.blobs;
    return status;
  }

  Status take_contents(v1::GetBlobsAnswer* answer, const std::vector<size_t>& asked,
                       const std::vector<Digest>& digests, bool may_miss,
                       std::deque<size_t>* wanted, SizeEstimate* sizes, Contents* contents) {
    if (answer->blobs_size() != static_cast<int>(asked.size()) || asked.empty()) {
      return wrong_answer("another number of blobs than asked for");
    }
    if (answer->blobs(0).state() == v1::BLOB_STATE_DEFERRED) {
      return wrong_answer("it put off even the first blob");
    }
    for (size_t i = 0; i < asked.size(); ++i) {
      v1::BlobResult& result = *answer->mutable_blobs(static_cast<int>(i));
      const Digest& digest = digests[asked[i]];
      switch (result.state()) {
        case v1::BLOB_STATE_FOUND:
          if (digest_of(result.content()) != digest) {
            return data_loss("{}: what it gave as blob {} has another digest; fetch it elsewhere",
                             endpoint_.name(), digest.hex());
          }
          sizes->blobs += 1;
          sizes->bytes += result.content().size();
          (*contents)[asked[i]] = std::move(*result.mutable_content());
          break;
        case v1::BLOB_STATE_MISSING:
          if (may_miss) break;
          return not_found("{}: it has no blob {}", endpoint_.name(), digest.hex());
        case v1::BLOB_STATE_FAILED:
          return data_loss("{}: it can't read its blob {}; put it again", endpoint_.name(),
                           digest.hex());
        case v1::BLOB_STATE_DEFERRED:
          wanted->push_back(asked[i]);
          break;
        default:
          return wrong_answer("an unknown state of a blob");
      }
    }
    return ok_status();
  }

  const uint32_t deadline_ms_;
  const RetryPolicy policy_;
  OrchestratorEndpoint endpoint_;
  OrchestratorEndpoint puts_;  // a connection of its own: questions don't wait behind what goes up
  std::atomic<size_t> mean_bytes_{0};  // of the blobs that came last: the next calls' first guess
};

}  // namespace

StatusOr<std::unique_ptr<GrpcBlobLink>> GrpcBlobLink::create(BlobLinkOptions options) {
  TESSERA_CHECK(options.signer != nullptr);
  TESSERA_RETURN_IF_ERROR(parse_address(options.server).status());
  return std::unique_ptr<GrpcBlobLink>(std::make_unique<BlobClient>(std::move(options)));
}

}  // namespace tessera::net
