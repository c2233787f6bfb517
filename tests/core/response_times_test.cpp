#include "tessera/core/response_times.h"

#include <gtest/gtest.h>

namespace tessera::core {
namespace {

TEST(ResponseTimes, SayNothingUntilThereAreEnough) {
  ResponseTimes times;
  EXPECT_EQ(times.median(), 0);
  for (size_t i = 0; i + 1 < ResponseTimes::kEnough; ++i) {
    times.add(10);
    EXPECT_EQ(times.deadline(5, 5000), 5000);
  }
  times.add(10);
  EXPECT_EQ(times.deadline(5, 5000), 10);
  EXPECT_EQ(times.deadline(500, 5000), 500);
}

TEST(ResponseTimes, AreTheMedianAndEightTimesItsDeviation) {
  ResponseTimes times;
  for (const TimeMs ms : {100, 90, 110, 95, 105, 80, 120, 100, 100}) times.add(ms);
  EXPECT_EQ(times.median(), 100);
  EXPECT_EQ(times.deviation(), 5);
  EXPECT_EQ(times.deadline(0, 5000), 140);
  EXPECT_EQ(times.deadline(0, 120), 120);
  EXPECT_EQ(times.deadline(300, 200), 200);  // the ceiling wins
}

TEST(ResponseTimes, AFewOutliersChangeLittle) {
  ResponseTimes times;
  for (int i = 0; i < 60; ++i) times.add(100 + i % 3);
  for (int i = 0; i < 4; ++i) times.add(60000);
  EXPECT_LE(times.deadline(0, 60000), 120);
}

TEST(ResponseTimes, RememberOnlyTheNewest) {
  ResponseTimes times;
  for (size_t i = 0; i < 3 * ResponseTimes::kWindow; ++i) times.add(1000);
  for (size_t i = 0; i < ResponseTimes::kWindow; ++i) times.add(10);
  EXPECT_EQ(times.count(), ResponseTimes::kWindow);
  EXPECT_EQ(times.median(), 10);
  EXPECT_EQ(times.deviation(), 0);
}

TEST(ResponseTimes, TakeAnyNumber) {
  ResponseTimes times;
  for (int i = 0; i < 5; ++i) times.add(-7);
  for (int i = 0; i < 5; ++i) times.add(TimeMs{1} << 40);
  EXPECT_EQ(times.median(), INT32_MAX);
  EXPECT_EQ(times.deadline(0, 5000), 5000);
}

}  // namespace
}  // namespace tessera::core
