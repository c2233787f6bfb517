#include "tessera/net/auth.h"

#include <gmock/gmock.h>

#include "net/net_fixture.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;

constexpr TimeMs kNow = 1'700'000'000'000;
constexpr char kMethod[] = "/tessera.v1.Peer/Exchange";

struct Auth : testing::Test {
  TimeMs sender_clock = kNow;
  KeyPair sender_key = key_of('s');
  NodeId self = key_of('r').id();
  RequestSigner signer{sender_key, [this] { return sender_clock; }};
  RequestVerifier verifier{self, kRun, limits()};
  Digest body = digest_of("body");

  static AuthLimits limits(size_t max_senders = 100) {
    return AuthLimits{.max_senders = max_senders, .clock = [] { return kNow; }};
  }
  AuthHeader signed_header() { return signer.sign(kMethod, self, kRun, "session", body); }
  std::string refusal(const AuthHeader& header) { return refusal(encode(header)); }
  std::string refusal(const std::string& bytes) {
    const auto result = verifier.verify(kMethod, bytes, body);
    EXPECT_TRUE(absl::IsUnauthenticated(result.status())) << result.status();
    return message_of(result.status());
  }
};

TEST_F(Auth, TellsWhoSent) {
  const auto header = verifier.verify(kMethod, encode(signed_header()), body);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->node, sender_key.id());
  EXPECT_EQ(header->session, "session");
}

TEST_F(Auth, RefusesWhatIsMissingOrMalformed) {
  EXPECT_THAT(refusal(""), HasSubstr("must be signed"));
  EXPECT_THAT(refusal("x"), HasSubstr("malformed"));
  EXPECT_THAT(refusal(encode(signed_header()) + "x"), HasSubstr("malformed"));
  AuthHeader header = signed_header();
  header.session = std::string(kMaxSessionBytes + 1, 's');
  EXPECT_THAT(refusal(header), HasSubstr("malformed"));
}

TEST_F(Auth, EveryFieldIsUnderTheSignature) {
  const auto changed = [&](auto change) {
    AuthHeader header = signed_header();
    change(header);
    return refusal(header);
  };
  const auto fits_not = HasSubstr("does not fit");
  EXPECT_THAT(changed([](AuthHeader& header) { header.node = key_of('o').id(); }), fits_not);
  EXPECT_THAT(changed([](AuthHeader& header) { ++header.stream; }), fits_not);
  EXPECT_THAT(changed([](AuthHeader& header) { header.session += "x"; }), fits_not);
  EXPECT_THAT(changed([](AuthHeader& header) { ++header.sequence; }), fits_not);
  EXPECT_THAT(changed([](AuthHeader& header) { ++header.unix_ms; }), fits_not);
  EXPECT_THAT(changed([](AuthHeader& header) { header.signature[63] ^= 1; }), fits_not);
}

TEST_F(Auth, SignsMethodReceiverRunAndBody) {
  const auto fits_not = HasSubstr("does not fit");
  EXPECT_THAT(refusal(signer.sign("/other", self, kRun, "", body)), fits_not);
  EXPECT_THAT(refusal(signer.sign(kMethod, key_of('o').id(), kRun, "", body)), fits_not);
  EXPECT_THAT(refusal(signer.sign(kMethod, self, "other run", "", body)), fits_not);
  EXPECT_THAT(refusal(signer.sign(kMethod, self, kRun, "", digest_of("other"))), fits_not);
}

TEST_F(Auth, RefusesStaleTimesInBothDirectionsTellingBothClocks) {
  const TimeMs limit = AuthLimits().max_age_ms;
  sender_clock = kNow - limit;
  EXPECT_TRUE(verifier.verify(kMethod, encode(signed_header()), body).ok());
  sender_clock = kNow - limit - 1;
  EXPECT_THAT(refusal(signed_header()), AllOf(HasSubstr(std::to_string(sender_clock)),
                                              HasSubstr(std::to_string(kNow)), HasSubstr("NTP")));
  sender_clock = kNow + limit;
  EXPECT_TRUE(verifier.verify(kMethod, encode(signed_header()), body).ok());
  sender_clock = kNow + limit + 1;
  EXPECT_THAT(refusal(signed_header()), HasSubstr("stale"));
  for (const int64_t extreme : {INT64_MIN, INT64_MAX}) {
    sender_clock = extreme;
    EXPECT_THAT(refusal(signed_header()), HasSubstr("stale"));
  }
}

TEST_F(Auth, RefusesAReplay) {
  const AuthHeader header = signed_header();
  EXPECT_TRUE(verifier.verify(kMethod, encode(header), body).ok());
  EXPECT_THAT(refusal(header), HasSubstr("replay"));
}

TEST_F(Auth, ASecondProcessWithTheSameKeyCountsForItself) {
  RequestSigner other(sender_key, [] { return kNow; });
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(verifier.verify(kMethod, encode(signed_header()), body).ok());
    const AuthHeader header = other.sign(kMethod, self, kRun, "", body);
    EXPECT_TRUE(verifier.verify(kMethod, encode(header), body).ok());
  }
}

// Streams are of the sender's choice: with any number of them nobody's requests become new again, its own neither.
TEST_F(Auth, ManyStreamsOfOneKeyFlushNothing) {
  const KeyPair victim_key = key_of('v');
  RequestSigner victim(victim_key, [] { return kNow - 1000; });
  const AuthHeader command = victim.sign(kMethod, self, kRun, "", body);
  const AuthHeader own = signed_header();
  EXPECT_TRUE(verifier.verify(kMethod, encode(command), body).ok());
  EXPECT_TRUE(verifier.verify(kMethod, encode(own), body).ok());
  for (TimeMs later = 1; later <= 300; ++later) {
    RequestSigner flood(sender_key, [&] { return kNow + later; });
    EXPECT_TRUE(verifier.verify(kMethod, encode(flood.sign(kMethod, self, kRun, "", body)), body).ok());
  }
  EXPECT_THAT(refusal(command), HasSubstr("replay"));
  EXPECT_THAT(refusal(own), HasSubstr("replay"));
}

TEST_F(Auth, AForgottenSendersRequestsStayUsed) {
  RequestVerifier small(self, kRun, limits(2));
  const auto accepts = [&](const AuthHeader& header) { return small.verify(kMethod, encode(header), body).ok(); };
  const auto signed_at = [&](char key, TimeMs at) {
    const KeyPair pair = key_of(key);
    return RequestSigner(pair, [at] { return at; }).sign(kMethod, self, kRun, "", body);
  };
  const AuthHeader command = signed_at('v', kNow - 1000);
  EXPECT_TRUE(accepts(command));
  const AuthHeader other = signed_at('a', kNow - 999);
  EXPECT_TRUE(accepts(other));
  EXPECT_TRUE(accepts(signed_at('b', kNow - 998)));  // 'v' is forgotten
  EXPECT_FALSE(accepts(command));
  EXPECT_FALSE(accepts(other));
  EXPECT_TRUE(accepts(signed_at('v', kNow - 997)));  // a new one of it is not
  // Clocks in the future lock nobody out.
  EXPECT_TRUE(accepts(signed_at('c', kNow + 5000)));
  EXPECT_TRUE(accepts(signed_at('d', kNow + 5000)));
  EXPECT_TRUE(accepts(signed_at('e', kNow + 5000)));
  EXPECT_TRUE(accepts(signed_at('f', kNow + 1)));
}

TEST_F(Auth, ASenderHasRoomForAFewProcesses) {
  std::vector<std::unique_ptr<RequestSigner>> processes;
  for (size_t i = 0; i < RequestVerifier::kStreamsPerSender; ++i) {
    processes.push_back(std::make_unique<RequestSigner>(sender_key, [] { return kNow; }));
  }
  for (int round = 0; round < 3; ++round) {
    for (const auto& process : processes) {
      EXPECT_TRUE(verifier.verify(kMethod, encode(process->sign(kMethod, self, kRun, "", body)), body).ok());
    }
  }
}

TEST_F(Auth, ChecksTheRunThatIsSet) {
  verifier.set_run("next run");
  EXPECT_THAT(refusal(signed_header()), HasSubstr("does not fit"));
  EXPECT_TRUE(
      verifier.verify(kMethod, encode(signer.sign(kMethod, self, "next run", "", body)), body)
          .ok());
}

TEST(ReplayWindow, AcceptsEachNumberOnceInAnyOrder) {
  ReplayWindow window;
  EXPECT_FALSE(window.accept(0));
  for (const uint64_t sequence : {5, 3, 1, 4, 2, 1000, 999}) {
    EXPECT_TRUE(window.accept(sequence)) << sequence;
    EXPECT_FALSE(window.accept(sequence)) << sequence;
  }
}

TEST(ReplayWindow, RefusesWhatIsTooOldToKnow) {
  ReplayWindow window;
  EXPECT_TRUE(window.accept(1));
  EXPECT_TRUE(window.accept(1 + ReplayWindow::kWidth));
  EXPECT_FALSE(window.accept(1));
  EXPECT_TRUE(window.accept(2));
  EXPECT_TRUE(window.accept(UINT64_MAX));
  EXPECT_FALSE(window.accept(1 + ReplayWindow::kWidth));
  EXPECT_TRUE(window.accept(UINT64_MAX - ReplayWindow::kWidth + 1));
  EXPECT_FALSE(window.accept(UINT64_MAX - ReplayWindow::kWidth));
}

// Against the definition: a set of all numbers seen.
TEST(ReplayWindow, AgreesWithASet) {
  uint64_t state = 1;
  ReplayWindow window;
  std::map<uint64_t, bool> seen;
  uint64_t highest = 0;
  for (int i = 0; i < 20000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t center = static_cast<uint64_t>(i) / 4 + 1;
    const uint64_t sequence = center + (state >> 33) % 1500;
    const bool known = highest >= sequence && highest - sequence >= ReplayWindow::kWidth;
    const bool expected = !known && !seen[sequence];
    ASSERT_EQ(window.accept(sequence), expected) << i;
    if (expected) seen[sequence] = true;
    highest = std::max(highest, sequence);
  }
}

}  // namespace
}  // namespace tessera::net
