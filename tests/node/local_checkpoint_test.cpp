// What a miner saves in its folder, and what of it the next process takes.
#include "node/local_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/temporary_folder.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

using core::LocalCheckpoint;
using core::LocalState;
using testing::HasSubstr;

constexpr size_t kValues = 5;
const std::string kRun = "0123456789abcdef";

struct Folder : testing::Test {
  test::TemporaryFolder folder;
  std::vector<float> base{1, 2, 3, 4, 5};
  std::vector<float> momentum{0, 0, 1, 0, 0};
  LocalState state{.masters = {9, 8, 7, 6, 5},
                   .first_moment = {1, 1, 1, 1, 1},
                   .second_moment = {2, 2, 2, 2, 2},
                   .optimizer_steps = 16,
                   .gradient = {3, 3, 3, 3, 3},
                   .gradient_microbatches = 2};
  LocalCheckpoint about{.run_id = kRun,
                        .stage = 1,
                        .epoch = 4,
                        .base = *name_stage_state(base, momentum),
                        .steps = 16,
                        .schedule_step = 16,
                        .accumulated = {7, 9}};

  core::Assignment assignment() const {
    core::Assignment assigned;
    assigned.stage = 1;
    assigned.epoch = 4;
    assigned.state = about.base;
    return assigned;
  }
  void save() { ASSERT_TRUE(save_local_checkpoint(folder.path(), about, state).ok()); }
  Recovery recover(const core::Assignment& assigned, bool with_base = true) const {
    return recover_local_state(
        folder.path(),
        {kRun, assigned, with_base ? std::make_shared<const std::vector<float>>(base) : nullptr,
         kValues});
  }
};

TEST_F(Folder, AnEmptyOneIsNoNews) {
  const Recovery found = recover(assignment());
  EXPECT_EQ(found.state, nullptr);
  EXPECT_EQ(found.about.text, "");
  EXPECT_EQ(found.about.steps_lost, 0u);
}

TEST_F(Folder, ACheckpointOfTheAssignedStateIsTakenWhole) {
  save();
  ASSERT_TRUE(note_steps(folder.path(), {kRun, 1, 21, 3}).ok());
  const Recovery found = recover(assignment());
  ASSERT_NE(found.state, nullptr);
  EXPECT_EQ(found.state->masters, state.masters);
  EXPECT_EQ(found.state->gradient, state.gradient);
  EXPECT_EQ(found.state->optimizer_steps, 16u);
  ASSERT_TRUE(found.about.checkpoint.has_value());
  EXPECT_EQ(encode(*found.about.checkpoint), encode(about));
  EXPECT_EQ(found.about.steps, 21u);
  EXPECT_EQ(found.about.steps_lost, 5u);
  EXPECT_EQ(found.about.merged_steps, 3u);
  EXPECT_THAT(found.about.text, HasSubstr("16 local steps; 5 are lost"));
}

TEST_F(Folder, OfAnotherEpochOnlyTheMomentsAreTaken) {
  save();
  ASSERT_TRUE(note_steps(folder.path(), {kRun, 1, 21, 3}).ok());
  core::Assignment later = assignment();
  later.epoch = 5;
  later.state = digest_of("another");
  const Recovery found = recover(later);
  ASSERT_NE(found.state, nullptr);
  EXPECT_EQ(found.state->masters, base);  // the assigned ones
  EXPECT_EQ(found.state->first_moment, state.first_moment);
  EXPECT_TRUE(found.state->gradient.empty());
  EXPECT_EQ(found.state->gradient_microbatches, 0u);
  EXPECT_FALSE(found.about.checkpoint.has_value());
  EXPECT_TRUE(found.about.moments);
  EXPECT_EQ(found.about.steps_lost, 18u);
}

TEST_F(Folder, TheSeedsBaseIsTakenFromItsCopy) {
  about.epoch = 0;
  save();
  ASSERT_TRUE(write_stage_copy(folder.path(), 1, 0, base, momentum).ok());
  core::Assignment at_seed;
  at_seed.stage = 1;
  Recovery found = recover(at_seed, false);
  ASSERT_NE(found.base, nullptr);
  EXPECT_EQ(*found.base, base);
  EXPECT_EQ(found.momentum, momentum);
  EXPECT_EQ(found.base_name, about.base);
  EXPECT_TRUE(found.about.checkpoint.has_value());
  // A copy of another base is of no use.
  ASSERT_TRUE(write_stage_copy(folder.path(), 1, 0, momentum, base).ok());
  found = recover(at_seed, false);
  EXPECT_EQ(found.state, nullptr);
  EXPECT_THAT(found.about.text, HasSubstr("the copy of the base is of another epoch"));
}

TEST_F(Folder, WhatIsOfAnotherRunStageOrSizeIsNotUsed) {
  const auto expect_refused = [&](const std::string& why) {
    save();
    const Recovery found = recover(assignment());
    EXPECT_EQ(found.state, nullptr) << why;
    EXPECT_THAT(found.about.text, HasSubstr(why));
  };
  about.run_id = "another";
  expect_refused("it is of another run");
  about.run_id = kRun;
  about.stage = 2;
  expect_refused("it is of stage 2");
  about.stage = 1;
  for (auto* values : {&state.masters, &state.first_moment, &state.second_moment, &state.gradient})
    values->pop_back();
  expect_refused("it has 4 values, the stage has 5");
}

// Every byte, changed or missing, is noticed; and costs nothing but the checkpoint.
TEST_F(Folder, DamageIsNoticedWhereverItIs) {
  save();
  const std::string path = folder.path() + "/local_checkpoint.bin";
  const std::string good = *read_file(path);
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] ^= 1;
    ASSERT_TRUE(write_file_quickly(path, bad).ok());
    EXPECT_EQ(recover(assignment()).state, nullptr) << i;
    ASSERT_TRUE(write_file_quickly(path, good.substr(0, i)).ok());
    const Recovery found = recover(assignment());
    EXPECT_EQ(found.state, nullptr) << i;
    EXPECT_THAT(found.about.text, HasSubstr("this miner's own checkpoint is not used"));
  }
  ASSERT_TRUE(write_file_quickly(path, good).ok());
  EXPECT_NE(recover(assignment()).state, nullptr);
}

TEST_F(Folder, ANoteThatCannotBeReadCountsNothing) {
  save();
  for (const std::string& bytes : {std::string(), std::string("rubbish"), std::string(200, 'x')}) {
    ASSERT_TRUE(write_file_quickly(folder.path() + "/steps.bin", bytes).ok());
    EXPECT_EQ(recover(assignment()).about.steps_lost, 0u);
  }
  ASSERT_TRUE(note_steps(folder.path(), {kRun, 2, 99, 0}).ok());  // of another stage
  EXPECT_EQ(recover(assignment()).about.steps_lost, 0u);
}

}  // namespace
}  // namespace tessera::node
