#include "net/convert.h"

#include <gmock/gmock.h>

#include <limits>

#include "net/net_fixture.h"

namespace tessera::net {
namespace {

using ::testing::StartsWith;

// Through the bytes of the wire.
template <class Proto, class Core>
Core round_trip(const Core& value) {
  Proto sent;
  to_proto(value, &sent);
  Proto received;
  EXPECT_TRUE(received.ParseFromString(sent.SerializeAsString()));
  Core result;
  const Status status = from_proto(received, &result);
  EXPECT_TRUE(status.ok()) << status;
  return result;
}

TEST(Convert, KeepsEveryField) {
  const auto registration = filled<core::Registration>();
  EXPECT_EQ(encode(round_trip<v1::Registration>(registration)), encode(registration));
  const auto request = filled_sync_request();
  EXPECT_EQ(bytes_of_request(round_trip<v1::SyncRequest>(request)), bytes_of_request(request));
  const auto answer = filled_sync_answer();
  EXPECT_EQ(bytes_of_answer(round_trip<v1::SyncAnswer>(answer)), bytes_of_answer(answer));
}

TEST(Convert, KeepsTheDefaults) {
  const core::SyncRequest request;
  EXPECT_EQ(bytes_of_request(round_trip<v1::SyncRequest>(request)), bytes_of_request(request));
  core::SyncAnswer answer;
  EXPECT_EQ(bytes_of_answer(round_trip<v1::SyncAnswer>(answer)), bytes_of_answer(answer));
  answer.known = false;
  answer.peers.emplace();  // a table without peers is not the same as none
  answer.assignment.emplace();
  EXPECT_EQ(bytes_of_answer(round_trip<v1::SyncAnswer>(answer)), bytes_of_answer(answer));
  core::Receipt
      receipt;  // the head's and the tail's zero hashes stay zero, so the signature stays right
  EXPECT_EQ(encode(round_trip<v1::Receipt>(receipt)), encode(receipt));
}

// The largest list of results that a merge can have, with all their copies and the longest manifest.
TEST(Convert, TheLargestMergeFitsAnAnswer) {
  core::SyncAnswer answer;
  core::MergeDirective& merge = answer.merge.emplace();
  merge.phase = core::MergePhase::kApply;
  const Digest digest = digest_of("any");
  merge.uploads.assign(core::kMaxUploads, {digest, 0.25f});
  const core::ShardResult result{uint64_t{1} << 20, 1000, digest,
                                 std::vector<core::ResultCopy>(core::kMaxResultCopies, {digest, digest})};
  merge.results.assign(core::kMaxResults, result);
  v1::SyncAnswer message;
  to_proto(answer, &message);
  EXPECT_LT(message.ByteSizeLong(), size_t{4} << 20);
}

template <class Core, class Proto>
std::string refusal(const Proto& message) {
  Core value;
  const Status status = from_proto(message, &value);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return message_of(status);
}

TEST(Convert, RefusesWrongSizesNamingTheField) {
  v1::SyncRequest request;
  to_proto(filled_sync_request(), &request);
  const v1::SyncRequest good = request;

  request.mutable_receipts(2)->set_input_hash("short");
  EXPECT_THAT(refusal<core::SyncRequest>(request),
              StartsWith("receipts[2].input_hash: 5 bytes, expected 32"));
  request = good;
  request.mutable_receipts(0)->set_signature(std::string(63, 'x'));
  EXPECT_THAT(refusal<core::SyncRequest>(request),
              StartsWith("receipts[0].signature: 63 bytes, expected 64"));
  request = good;
  request.mutable_upload()->set_object("");
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("upload.object: 0 bytes"));
  request = good;
  request.set_published_state("");
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("published_state: 0 bytes"));
  request = good;
  request.clear_status();
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("status: missing"));
  request = good;
  request.mutable_receipts(1)->set_stage(64);
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("receipts[1].stage: 64"));
  request = good;
  request.set_leases_wanted(1025);
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("leases_wanted: 1025"));
}

TEST(Convert, RefusesUnknownEnumerations) {
  v1::SyncRequest request;
  to_proto(filled_sync_request(), &request);
  request.mutable_status()->set_phase(static_cast<v1::MinerPhase>(4));
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("status.phase: unknown value 4"));

  v1::SyncAnswer answer;
  to_proto(filled_sync_answer(), &answer);
  answer.set_phase(static_cast<v1::RunPhase>(-1));
  EXPECT_THAT(refusal<core::SyncAnswer>(answer), StartsWith("phase: unknown value -1"));
  answer.set_phase(v1::RUN_PHASE_PAUSED);
  answer.mutable_merge()->set_phase(static_cast<v1::MergePhase>(3));
  EXPECT_THAT(refusal<core::SyncAnswer>(answer), StartsWith("merge.phase: unknown value 3"));

  v1::RegisterAnswer registered;
  registered.set_refusal(static_cast<v1::RegisterRefusal>(6));
  EXPECT_THAT(refusal<core::RegisterAnswer>(registered), StartsWith("refusal: unknown value 6"));

  v1::ProbeAnswer health;
  health.set_microbatch_ms(-1);
  EXPECT_THAT(refusal<core::PeerHealth>(health), StartsWith("microbatch_ms: -1"));
  health.set_microbatch_ms(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT(refusal<core::PeerHealth>(health), StartsWith("microbatch_ms: nan"));
}

TEST(Convert, RefusesTooMany) {
  v1::SyncRequest request;
  to_proto(core::SyncRequest(), &request);
  v1::Receipt receipt;
  to_proto(core::Receipt(), &receipt);
  for (size_t i = 0; i < core::kMaxReceiptsPerSync; ++i) *request.add_receipts() = receipt;
  core::SyncRequest value;
  EXPECT_TRUE(from_proto(request, &value).ok());
  *request.add_receipts() = receipt;
  EXPECT_THAT(refusal<core::SyncRequest>(request), StartsWith("receipts: 257 entries"));

  v1::Lease lease;
  for (size_t i = 0; i < kMaxStages + 1; ++i) lease.add_pathway(1);
  EXPECT_THAT(refusal<core::Lease>(lease), StartsWith("pathway: 65 entries"));

  v1::SyncAnswer answer;
  for (size_t i = 0; i < kMaxLeases + 1; ++i) answer.add_leases();
  EXPECT_THAT(refusal<core::SyncAnswer>(answer), StartsWith("leases: 1025 entries"));
  answer.clear_leases();
  for (size_t i = 0; i < kMaxPeers + 1; ++i) answer.mutable_peers()->add_peers();
  EXPECT_THAT(refusal<core::SyncAnswer>(answer), StartsWith("peers: 100001 entries"));
  answer.clear_peers();
  for (size_t i = 0; i < core::kMaxUploads + 1; ++i) answer.mutable_merge()->add_uploads();
  EXPECT_THAT(refusal<core::SyncAnswer>(answer), StartsWith("merge.uploads: 4097 entries"));

  v1::Registration registration;
  to_proto(filled<core::Registration>(), &registration);
  registration.set_device(std::string(257, 'd'));
  EXPECT_THAT(refusal<core::Registration>(registration), StartsWith("device: 257 bytes"));
  v1::RegisterAnswer registered;
  registered.set_session(std::string(17, 's'));
  EXPECT_THAT(refusal<core::RegisterAnswer>(registered), StartsWith("session: 17 bytes"));
}

TEST(Convert, ShortensSentencesThatAreTooLong) {
  core::SyncAnswer answer;
  answer.reason = std::string(kMaxReason + 1, 'r');
  EXPECT_EQ(round_trip<v1::SyncAnswer>(answer).reason.size(), kMaxReason);
}

}  // namespace
}  // namespace tessera::net
