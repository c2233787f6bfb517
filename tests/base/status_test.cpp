#include "tessera/base/status.h"

#include <gtest/gtest.h>

#include <memory>

namespace tessera {
namespace {

StatusOr<int> half(int value) {
  if (value % 2 != 0) return invalid_argument("{} is odd", value);
  return value / 2;
}

StatusOr<int> quarter(int value) {
  TESSERA_ASSIGN_OR_RETURN(const int once, half(value));
  TESSERA_ASSIGN_OR_RETURN(const int twice, half(once));
  return twice;
}

Status check(int value) {
  TESSERA_RETURN_IF_ERROR(quarter(value).status());
  TESSERA_RETURN_IF_ERROR(annotate(half(value / 4).status(), "the quarter"));
  return ok_status();
}

TEST(StatusTest, MacrosPassErrorsOn) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(message_of(quarter(7).status()), "7 is odd");
  EXPECT_EQ(message_of(quarter(6).status()), "3 is odd");
  EXPECT_TRUE(check(8).ok());
  EXPECT_EQ(message_of(check(6)), "3 is odd");
  EXPECT_EQ(message_of(check(4)), "the quarter: 1 is odd");
  EXPECT_EQ(check(4).code(), absl::StatusCode::kInvalidArgument);
}

TEST(StatusTest, MacroMovesOutOfTheResult) {
  const auto make = []() -> StatusOr<std::unique_ptr<int>> { return std::make_unique<int>(3); };
  const auto use = [&]() -> StatusOr<int> {
    TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<int> value, make());
    return *value;
  };
  EXPECT_EQ(*use(), 3);
}

TEST(StatusTest, EveryKindHasItsCode) {
  EXPECT_TRUE(absl::IsNotFound(not_found("x")));
  EXPECT_TRUE(absl::IsDataLoss(data_loss("x")));
  EXPECT_TRUE(absl::IsUnavailable(unavailable("x")));
  EXPECT_TRUE(absl::IsFailedPrecondition(failed_precondition("x")));
  EXPECT_TRUE(absl::IsInternal(internal_error("x")));
  EXPECT_TRUE(annotate(ok_status(), "prefix").ok());
}

TEST(StatusDeathTest, CheckNamesThePlace) {
  EXPECT_DEATH(TESSERA_CHECK(1 + 1 == 3), "status_test.cpp:[0-9]+: check failed: 1 \\+ 1 == 3");
}

}  // namespace
}  // namespace tessera
