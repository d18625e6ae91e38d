#include "engine/tasks/fork_plan.h"

#include <sched.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>

#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

// What the kernel does with parents and sessions.
struct Kernel {
  struct Process {
    pid_t parent = 0, session = 0;
    bool subreaper = false, alive = true;
  };
  std::map<pid_t, Process> processes = {{1, {0, 1, true}}};

  void Fork(pid_t source, pid_t pid, bool sibling) {
    const Process from = processes.at(source);
    ASSERT_TRUE(from.alive);
    processes[pid] = {sibling ? from.parent : source, from.session};
  }
  void Die(pid_t pid) {
    processes[pid].alive = false;
    pid_t reaper = processes[pid].parent;
    while (!processes.at(reaper).subreaper) reaper = processes.at(reaper).parent;
    for (auto& [other, process] : processes) {
      if (process.parent == pid) process.parent = reaper;
    }
  }
};

std::vector<PlannedProcess> TreeOf(const Kernel& kernel) {
  std::vector<pid_t> pids = {1};
  std::vector<PlannedProcess> tree = {{.pid = 1, .parent = 0, .session = 1}};
  for (std::size_t i = 0; i < pids.size(); ++i) {
    for (const auto& [pid, process] : kernel.processes) {
      if (process.parent != pids[i] || !process.alive) continue;
      pids.push_back(pid);
      tree.push_back({.pid = pid, .parent = i, .session = process.session});
    }
  }
  return tree;
}

// Carries `plan` out and compares what comes of it with `tree`.
void Check(const std::vector<PlannedProcess>& tree, const ForkPlan& plan) {
  Kernel kernel;
  kernel.processes[1].session = tree[0].session;
  const auto pid_of = [&](std::size_t node) -> pid_t {
    if (node < tree.size()) return tree[node].pid;
    const pid_t pid = plan.extras[node - tree.size()].pid;
    return pid != 0 ? pid : static_cast<pid_t>(100'000 + node);
  };
  for (const ForkPlan::Step& step : plan.steps) {
    if (step.kind == ForkPlan::Step::Kind::kFork) {
      ASSERT_FALSE(kernel.processes.contains(pid_of(step.node)));
      kernel.Fork(pid_of(step.source), pid_of(step.node), step.sibling);
    } else {
      kernel.processes.at(pid_of(step.node)).session = pid_of(step.node);
    }
  }
  for (const ForkPlan::End& end : plan.ends) {
    EXPECT_EQ(kernel.processes.at(pid_of(end.node)).parent, pid_of(end.waiter));
    kernel.processes.at(pid_of(end.reaper)).subreaper = true;
    kernel.Die(pid_of(end.node));
    kernel.processes.at(pid_of(end.reaper)).subreaper = end.reaper == 0;
  }
  std::size_t alive = 0;
  for (const auto& [pid, process] : kernel.processes) alive += process.alive ? 1 : 0;
  EXPECT_EQ(alive, tree.size());
  for (const PlannedProcess& process : tree) {
    const Kernel::Process& made = kernel.processes.at(process.pid);
    EXPECT_EQ(made.session, process.session) << process.pid;
    const pid_t parent = process.pid == 1 ? 0 : tree[process.parent].pid;
    EXPECT_EQ(made.parent, parent) << process.pid;
  }
}

// A container's life: forks, sessions, deaths and subreapers at random.
Kernel RandomHistory(unsigned seed, int events) {
  std::mt19937 random(seed);
  Kernel kernel;
  pid_t next = 2;
  for (int i = 0; i < events; ++i) {
    std::vector<pid_t> living;
    for (const auto& [pid, process] : kernel.processes) {
      if (process.alive) living.push_back(pid);
    }
    const pid_t pid = living[random() % living.size()];
    Kernel::Process& process = kernel.processes[pid];
    switch (random() % 8) {
      case 0:
        if (pid != 1) process.session = pid;
        break;
      case 1:
        if (pid != 1) kernel.Die(pid);
        break;
      case 2:
        process.subreaper = pid == 1 || !process.subreaper;
        break;
      default:
        kernel.Fork(pid, next++, pid != 1 && random() % 2 == 0);
    }
  }
  return kernel;
}

TEST(ForkPlanTest, MakesWhatAnyHistoryLeaves) {
  for (unsigned seed = 0; seed < 2'000; ++seed) {
    const auto tree = TreeOf(RandomHistory(seed, 20 + static_cast<int>(seed % 200)));
    const auto plan = PlanForks(tree, 1);
    ASSERT_THAT(plan, IsOk()) << "seed " << seed;
    ASSERT_NO_FATAL_FAILURE(Check(tree, *plan)) << "seed " << seed;
    ASSERT_FALSE(HasNonfatalFailure()) << "seed " << seed;
  }
}

TEST(ForkPlanTest, ADaemonsOrphanComesFromAStandInOfItsSession) {
  const std::vector<PlannedProcess> tree = {{.pid = 1, .parent = 0, .session = 1},
                                            {.pid = 9, .parent = 0, .session = 7}};
  const auto plan = PlanForks(tree, 1);
  ASSERT_THAT(plan, IsOk());
  ASSERT_EQ(plan->extras.size(), 1u);
  EXPECT_EQ(plan->extras[0].pid, 7);
  Check(tree, *plan);
}

TEST(ForkPlanTest, SharedTablesAreInheritedFromTheParentOrASibling) {
  const std::vector<PlannedProcess> tree = {
      {.pid = 1, .parent = 0, .session = 1, .files_id = 2, .fs_id = 2},
      {.pid = 5, .parent = 0, .session = 1, .files_id = 2, .fs_id = 3},
      {.pid = 6, .parent = 0, .session = 1, .files_id = 4, .fs_id = 3}};
  const auto plan = PlanForks(tree, 1);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->steps[0].shared, static_cast<unsigned long>(CLONE_FILES));
  EXPECT_EQ(plan->steps[1].shared, static_cast<unsigned long>(CLONE_FS));
  EXPECT_EQ(plan->steps[1].source, 1u);
  EXPECT_TRUE(plan->steps[1].sibling);
}

TEST(ForkPlanTest, WhatSharesWithTwoThatAreNoneOfItsKinIsRefused) {
  const std::vector<PlannedProcess> tree = {
      {.pid = 1, .parent = 0, .session = 1, .files_id = 2, .fs_id = 2},
      {.pid = 5, .parent = 0, .session = 1, .files_id = 3, .fs_id = 3},
      {.pid = 6, .parent = 1, .session = 1, .files_id = 2, .fs_id = 3}};
  EXPECT_THAT(PlanForks(tree, 1), StatusIs(StatusCode::kUnimplemented));
}

}  // namespace
}  // namespace stasis::engine
