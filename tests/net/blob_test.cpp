// Blobs over loopback: batches, missing and damaged ones, a busy server.
#include <gmock/gmock.h>

#include <atomic>
#include <future>
#include <optional>
#include <thread>

#include "net/blob_bodies.h"
#include "net/client_channel.h"
#include "net/net_fixture.h"
#include "net/wire.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;

class MemoryBlobs : public BlobBackend {
 public:
  std::function<Status(const ports::Caller&, bool)> admitted;
  std::function<void()> before_get;  // on the blob threads
  std::function<void()> after_has;   // on the blob threads
  std::atomic<int> failures{0};      // puts and gets that fail as unavailable
  std::atomic<int> puts{0};

  Status admit(const ports::Caller& caller, bool write) override {
    return admitted ? admitted(caller, write) : ok_status();
  }
  Status put(const ports::Caller&, const Digest& name, std::string content) override {
    if (failures.fetch_sub(1) > 0) return unavailable("not now");
    ++puts;
    std::lock_guard lock(mutex_);
    blobs_[name] = std::move(content);
    return ok_status();
  }
  StatusOr<std::string> get(const Digest& digest) override {
    if (before_get) before_get();
    std::lock_guard lock(mutex_);
    const auto found = blobs_.find(digest);
    if (found == blobs_.end()) return not_found("no {}", digest.hex());
    if (found->second == "unreadable") return data_loss("/secret/path is damaged");
    return found->second;
  }
  bool has(const Digest& digest) override {
    bool found;
    {
      std::lock_guard lock(mutex_);
      found = blobs_.contains(digest);
    }
    if (after_has) after_has();
    return found;
  }
  void plant(const Digest& digest, std::string content) {
    std::lock_guard lock(mutex_);
    blobs_[digest] = std::move(content);
  }

 private:
  std::mutex mutex_;
  std::map<Digest, std::string> blobs_;
};

struct Blobs : testing::Test {
  MemoryBlobs store;
  std::unique_ptr<OrchestratorServer> server = started(2, 64);
  std::unique_ptr<GrpcBlobLink> link = linked(20000);

  std::unique_ptr<OrchestratorServer> started(size_t threads, size_t queued,
                                              const std::string& run = kRun,
                                              const std::string& listen = kLoopback) {
    auto result =
        OrchestratorServer::start(OrchestratorServerOptions{.listen = listen,
                                                            .key = key_of('o'),
                                                            .run_id = run,
                                                            .blob_threads = threads,
                                                            .max_queued_blob_calls = queued},
                                  nullptr, &store);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }
  std::unique_ptr<GrpcBlobLink> linked(uint32_t deadline_ms) {
    BlobLinkOptions options;
    options.server = server->address();
    options.signer = std::make_shared<RequestSigner>(key_of('m'));
    options.deadline_ms = deadline_ms;
    options.min_backoff_ms = 1;
    options.max_backoff_ms = 20;
    return *GrpcBlobLink::create(options);
  }
};

std::vector<Digest> digests_of(const std::vector<std::string>& blobs) {
  std::vector<Digest> digests;
  for (const std::string& blob : blobs) digests.push_back(digest_of(blob));
  return digests;
}

TEST_F(Blobs, LargeAndSmallOnesRoundTripInOrder) {
  std::vector<std::string> blobs;
  for (int i = 0; i < 700; ++i) blobs.push_back("small " + std::to_string(i));
  for (char letter : {'a', 'b', 'c', 'd', 'e'}) {
    blobs.push_back(std::string(kMaxBlobBytes, letter));
  }
  blobs.push_back("");
  const auto put = link->put(blobs);
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(*put, digests_of(blobs));
  const auto got = link->get(*put);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(*got == blobs);
  EXPECT_TRUE(link->put({})->empty());
  EXPECT_TRUE(link->get({})->empty());
}

TEST_F(Blobs, PutsOnlyWhatIsNotThere) {
  ASSERT_TRUE(link->put({"one", "two"}).ok());
  EXPECT_EQ(store.puts, 2);
  ASSERT_TRUE(link->put({"one", "three", "three", "two"}).ok());
  EXPECT_EQ(store.puts, 3);
}

TEST_F(Blobs, LargeBlobsAmongSmallOnesAreAskedForAgain) {
  // Small ones first make the calls large; then the answers overflow.
  std::vector<std::string> blobs;
  for (int i = 0; i < 300; ++i) blobs.push_back("small " + std::to_string(i));
  for (int i = 0; i < 8; ++i) {
    blobs.push_back(std::string(kMaxBlobBytes - 1, static_cast<char>('a' + i)));
  }
  const auto digests = link->put(blobs);
  ASSERT_TRUE(digests.ok()) << digests.status();
  const auto got = link->get(*digests);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(*got == blobs);
}

TEST_F(Blobs, MissingOnesAreNamed) {
  ASSERT_TRUE(link->put({"there"}).ok());
  const Digest missing = digest_of("not there");
  const Status status = link->get({digest_of("there"), missing}).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr(missing.hex()));
}

TEST_F(Blobs, WhatIsNotThereYetIsWaitedFor) {
  ASSERT_TRUE(link->put({"there"}).ok());
  const std::vector<Digest> names = digests_of({"there", "late"});
  const auto short_wait = link->get_present(names, 1);
  ASSERT_TRUE(short_wait.ok()) << short_wait.status();
  EXPECT_EQ(*short_wait, (std::vector<std::optional<std::string>>{"there", std::nullopt}));
  StatusOr<std::vector<std::optional<std::string>>> waited = unavailable("not begun");
  {
    std::jthread reader([&] { waited = link->get_present(names, 1000); });
    EXPECT_TRUE(linked(20000)->put({"late"}).ok());
  }
  ASSERT_TRUE(waited.ok()) << waited.status();
  EXPECT_EQ(*waited, (std::vector<std::optional<std::string>>{"there", "late"}));
}

TEST_F(Blobs, WrongContentIsNoticed) {
  const Digest digest = digest_of("right");
  store.plant(digest, "wrong");
  const Status status = link->get({digest}).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr(digest.hex()));
}

TEST_F(Blobs, UnreadableOnesDoNotTellTheServersPaths) {
  const Digest digest = digest_of("unreadable on disk");
  store.plant(digest, "unreadable");
  const Status status = link->get({digest}).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(message_of(status), Not(HasSubstr("secret")));
}

// A PutBlobs of `contents`, signed over `signed_over` (none: the body).
StatusOr<grpc::ByteBuffer> put_raw(const std::string& address, const std::vector<std::string>& contents,
                                   std::optional<Digest> signed_over) {
  ClientChannel channel("blob server", address, kMaxControlBytes);
  std::string request;
  for (const std::string& content : contents) append_content(content, &request);
  CallAuth auth{std::make_shared<RequestSigner>(key_of('m')), key_of('o').id(), kRun, ""};
  auth.digests.request = signed_over;
  Answer<CallResult> answer;
  channel.call(kPutBlobsMethod, buffer_of(request), auth, 20000, answer.callback());
  return answer.get().answer;
}

TEST_F(Blobs, ContentsChangedOnTheWayAreRefused) {
  const Digest honest = contents_digest(digests_of({"one", "two"}));
  EXPECT_TRUE(put_raw(server->address(), {"one", "two"}, honest).ok());
  EXPECT_EQ(store.puts, 2);
  for (const std::vector<std::string>& changed :
       {std::vector<std::string>{"one", "twO"}, {"two", "one"}, {"one"}, {"one", "two", "three"}, {}}) {
    const Status status = put_raw(server->address(), changed, honest).status();
    EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  }
  // Nor is a body of blobs taken that is signed as other bodies are.
  const Status unsaid = put_raw(server->address(), {"one"}, std::nullopt).status();
  EXPECT_TRUE(absl::IsUnauthenticated(unsaid)) << unsaid;
  EXPECT_THAT(message_of(unsaid), HasSubstr(kContentsMetadata));
  EXPECT_EQ(store.puts, 2);
}

TEST_F(Blobs, AnAnswersStatesAreSigned) {
  store.plant(digest_of("there"), "there");
  v1::GetBlobsRequest request;
  request.add_digests(std::string(digest_of("there").view()));
  request.add_digests(std::string(digest_of("not there").view()));
  ClientChannel channel("blob server", server->address(), kMaxControlBytes);
  CallAuth auth{std::make_shared<RequestSigner>(key_of('m')), key_of('o').id(), kRun, ""};
  const auto get = [&](std::vector<uint8_t> states) {
    auth.digests.answer = [states](const grpc::ByteBuffer&) -> StatusOr<Digest> { return states_digest(states); };
    Answer<CallResult> answer;
    channel.call(kGetBlobsMethod, buffer_of(serialize(request)), auth, 20000, answer.callback());
    return answer.get().answer.status();
  };
  EXPECT_TRUE(get({v1::BLOB_STATE_FOUND, v1::BLOB_STATE_MISSING}).ok());
  // What somebody on the way may have made of it.
  EXPECT_TRUE(absl::IsUnauthenticated(get({v1::BLOB_STATE_MISSING, v1::BLOB_STATE_MISSING})));
  EXPECT_TRUE(absl::IsUnauthenticated(get({v1::BLOB_STATE_FOUND, v1::BLOB_STATE_DEFERRED})));
  EXPECT_TRUE(absl::IsUnauthenticated(get({v1::BLOB_STATE_FOUND})));
}

TEST_F(Blobs, WaitingCallsEndWithTheServer) {
  std::promise<void> is_parked;
  // Once before the call waits and once after, for what came in between.
  store.after_has = [&, asked = 0]() mutable {
    if (++asked == 2) is_parked.set_value();
  };
  v1::GetBlobsRequest request;
  request.add_digests(std::string(digest_of("never").view()));
  request.set_wait_ms(10000);
  ClientChannel channel("blob server", server->address(), kMaxControlBytes);
  CallAuth auth{std::make_shared<RequestSigner>(key_of('m')), key_of('o').id(), kRun, ""};
  Answer<CallResult> answer;
  channel.call(kGetBlobsMethod, buffer_of(serialize(request)), auth, 20000, answer.callback());
  is_parked.get_future().wait();
  server->shutdown(100);
  // By the server, not by either's time.
  const Status status = answer.get().answer.status();
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsCancelled(status)) << status;
}

TEST(BlobBodies, AreProtobufs) {
  const std::string large(300000, 'x');
  std::string bytes;
  for (const std::string& content : {std::string("one"), std::string(), large}) append_content(content, &bytes);
  v1::PutBlobsRequest request;
  ASSERT_TRUE(parse(buffer_of(bytes), &request).ok());
  ASSERT_EQ(request.contents_size(), 3);
  EXPECT_EQ(request.contents(0), "one");
  EXPECT_EQ(request.contents(1), "");
  EXPECT_TRUE(request.contents(2) == large);

  BlobsAnswerBody body;
  body.add_found("small");
  body.add(v1::BLOB_STATE_MISSING);
  body.add_found(large);
  body.add_found("");
  body.add(v1::BLOB_STATE_DEFERRED);
  const std::vector<uint8_t> states = body.states();
  v1::GetBlobsAnswer answer;
  ASSERT_TRUE(parse(body.take(), &answer).ok());
  EXPECT_EQ(states_of(answer), states);
  EXPECT_EQ(states, (std::vector<uint8_t>{0, 1, 0, 0, 3}));
  ASSERT_EQ(answer.blobs_size(), 5);
  EXPECT_EQ(answer.blobs(0).content(), "small");
  EXPECT_TRUE(answer.blobs(2).content() == large);
  EXPECT_EQ(answer.blobs(3).content(), "");
}

TEST_F(Blobs, TooLargeIsRefusedHere) {
  EXPECT_TRUE(absl::IsInvalidArgument(link->put({std::string(kMaxBlobBytes + 1, 'x')}).status()));
}

TEST_F(Blobs, TriesAgainWhatWasUnavailable) {
  store.failures = 5;
  const auto digests = link->put({"stubborn"});
  ASSERT_TRUE(digests.ok()) << digests.status();
  EXPECT_LT(store.failures, 0);
  EXPECT_TRUE(store.has((*digests)[0]));
}

TEST_F(Blobs, GivesUpAtTheDeadlineWithTheReason) {
  store.failures = 1 << 30;
  const auto impatient = linked(300);
  const Status status = impatient->put({"hopeless"}).status();
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) << status;
  server->shutdown();
  EXPECT_FALSE(linked(300)->get({digest_of("x")}).ok());
}

TEST_F(Blobs, AFullQueueRefusesAndTheClientComesBack) {
  server = started(1, 1);
  link = linked(20000);
  const std::vector<std::string> blobs = {std::string(kMaxBlobBytes, 'a'), "b"};
  const auto digests = *link->put(blobs);
  // The only blob thread is held until two other calls were refused: one call works, one waits in
  // the queue.
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  Answer<bool> working;
  std::atomic<int> entered{0};
  store.before_get = [&] {
    if (entered++ == 0) {
      working.callback()(true);
      released.wait_for(kBound);
    }
  };
  std::vector<std::future<StatusOr<std::vector<std::string>>>> gets;
  std::vector<std::unique_ptr<GrpcBlobLink>> links;
  for (int i = 0; i < 4; ++i) {
    links.push_back(linked(20000));
    gets.push_back(std::async(std::launch::async, [&, i] { return links[i]->get(digests); }));
    if (i == 0) working.get();
  }
  // With no time to come back, the refusal itself is seen. Retries of the three others may hold the
  // one place in the queue or not: one of a few such calls meets it full.
  Status refusal;
  for (int i = 0; i < 100 && !absl::IsResourceExhausted(refusal); ++i) {
    refusal = linked(30)->get(digests).status();
  }
  EXPECT_TRUE(absl::IsResourceExhausted(refusal)) << refusal;
  release.set_value();
  for (auto& get : gets) {
    const auto contents = get.get();
    ASSERT_TRUE(contents.ok()) << contents.status();
    EXPECT_TRUE(*contents == blobs);
  }
}

TEST_F(Blobs, TheBackendDecidesWhoMayWrite) {
  store.admitted = [](const ports::Caller& caller, bool write) {
    EXPECT_EQ(caller.node, key_of('m').id());
    return write ? Status(absl::StatusCode::kPermissionDenied, "readers only") : ok_status();
  };
  store.plant(digest_of("public"), "public");
  EXPECT_TRUE(link->get({digest_of("public")}).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(link->put({"mine"}).status()));
}

TEST_F(Blobs, ANewRunAtTheSameServerIsFound) {
  ASSERT_TRUE(link->put({"before"}).ok());
  const std::string address = server->address();
  server.reset();
  server = started(2, 64, "another run", address);
  const auto digests = link->put({"after"});
  EXPECT_TRUE(digests.ok()) << digests.status();
}

TEST_F(Blobs, AServerWithoutTheServiceSaysSo) {
  SteeredOrchestrator handler;
  const std::string address = server->address();
  server.reset();
  server = *OrchestratorServer::start(
      OrchestratorServerOptions{.listen = address, .key = key_of('o'), .run_id = kRun}, &handler,
      nullptr);
  EXPECT_TRUE(absl::IsUnimplemented(link->get({digest_of("x")}).status()));
}

TEST_F(Blobs, ShutdownWithQueuedWorkEnds) {
  server = started(1, 8);
  const auto patient = linked(20000);
  const auto digests = *patient->put({"held"});
  Answer<bool> working;
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> entered{0};
  store.before_get = [&] {
    if (entered++ == 0) {
      working.callback()(true);
      released.wait_for(kBound);
    }
  };
  const auto first = linked(1000);
  const auto second = linked(1000);
  auto working_get = std::async(std::launch::async, [&] { return first->get(digests); });
  working.get();
  auto queued_get = std::async(std::launch::async, [&] { return second->get(digests); });
  auto shutdown = std::async(std::launch::async, [&] { server->shutdown(); });
  EXPECT_FALSE(working_get.get().ok());  // the disk never answered, and yet the call ended
  EXPECT_FALSE(queued_get.get().ok());
  release.set_value();
  ASSERT_EQ(shutdown.wait_for(kBound), std::future_status::ready);
}

}  // namespace
}  // namespace tessera::net
