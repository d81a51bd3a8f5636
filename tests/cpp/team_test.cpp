// The team of threads on std::thread, whose joins and atomics ThreadSanitizer sees (libgomp's barriers it does not): plain
// memory that one phase writes and the next reads, failing members, and the entries of two instruction sets.

#include "kernels/cpu/team.h"

#include <atomic>
#include <chrono>
#include <cstring>

#include "check.h"
#include "small_decoder.h"

namespace demiurgic::test {

namespace {

constexpr int kSizes[] = {1, 2, 3, 4};  // 4: more than many machines of CI have cores

// Units of a phase: none, one, and more than members.
int64_t units_of(int64_t phase) { return phase % 5 == 4 ? 0 : phase % 7 == 3 ? 1 : 3 + phase % 11; }

constexpr int64_t kMostUnits = 16;

// A phase computes each of its units from two of the phase before, in memory that nothing but the team orders.
struct Grid {
    std::vector<int64_t> now = std::vector<int64_t>(kMostUnits, 1), before = now;
    std::vector<int64_t> times_taken = std::vector<int64_t>(kMostUnits);

    void unit(int64_t phase, int64_t unit) {
        now[unit] = (before[unit] * 31 + before[(unit + 5) % kMostUnits] * 17 + phase) % 1000003;
        ++times_taken[unit];
    }
    // By one member, between two barriers.
    void turn(int64_t phase) {
        for (int64_t unit = 0; unit < kMostUnits; ++unit) {
            check(times_taken[unit] == (unit < units_of(phase)), "unit " + std::to_string(unit) + " of phase " +
                                                                     std::to_string(phase) + " was computed " +
                                                                     std::to_string(times_taken[unit]) + " times");
            times_taken[unit] = 0;
            if (unit >= units_of(phase)) now[unit] = before[unit];
        }
        std::swap(now, before);
    }
};

void walk(cpu::Team& team, int index, Grid& grid, int64_t num_phases) {
    for (int64_t phase = 0; phase < num_phases; ++phase) {
        const int64_t num = units_of(phase);
        for (int64_t unit = team.take(index, num); unit < num; unit = team.take(index, num)) grid.unit(phase, unit);
        team.barrier(index);
        if (team.take(index, 1) == 0) grid.turn(phase);
        team.barrier(index);
    }
}

std::vector<int64_t> expected(int64_t num_phases) {
    Grid grid;
    for (int64_t phase = 0; phase < num_phases; ++phase) {
        for (int64_t unit = 0; unit < units_of(phase); ++unit) grid.unit(phase, unit);
        grid.turn(phase);
    }
    return grid.before;
}

void phases_hand_over_plain_memory() {
    constexpr int64_t kPhases = 2000;
    for (const int size : kSizes) {
        Grid grid;
        run_team(size, [&](cpu::Team& team, int index) { walk(team, index, grid, kPhases); });
        check(grid.before == expected(kPhases),
              "a team of " + std::to_string(size) + " computed something else than one member");
    }
}

void a_phase_waits_for_its_slowest_member() {
    for (const int size : kSizes) {
        std::vector<int> arrived(size);
        run_team(size, [&](cpu::Team& team, int index) {
            if (index == size - 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
            arrived[index] = 1;
            team.barrier(index);
            for (int i = 0; i < size; ++i)
                check(arrived[i] == 1, "a member left the barrier before another came to it");
        });
    }
}

// One member takes nothing until all is done: the others find its units too, and its own come first and in order.
void members_take_over_units_of_one_that_is_late() {
    constexpr int64_t kUnits = 23;
    for (const int size : kSizes) {
        std::atomic<int64_t> num_done{0};
        run_team(size, [&](cpu::Team& team, int index) {
            const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
            while (size > 1 && index == size - 1 && num_done < kUnits) {
                check(std::chrono::steady_clock::now() < give_up, "nobody took the units of a member that is late");
                std::this_thread::yield();
            }
            int64_t last = -1;
            for (int64_t unit = team.take(index, kUnits); unit < kUnits; unit = team.take(index, kUnits)) {
                if (unit % size == index) {
                    check(unit > last, "unit " + std::to_string(unit) + " came after " + std::to_string(last));
                    last = unit;
                }
                ++num_done;
            }
            team.barrier(index);
            check(num_done == kUnits, std::to_string(num_done) + " units were computed");
        });
    }
}

void a_smaller_team_than_was_asked_for() {
    constexpr int64_t kPhases = 100;
    Grid grid;
    cpu::Team team(4);
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
            team.run_member([&] {
                team.resize(2);
                check(team.size() == 2, "the size of the team is not the one it was given");
                walk(team, i, grid, kPhases);
            });
        });
    }
    for (std::thread& thread : threads) thread.join();
    team.rethrow();
    check(grid.before == expected(kPhases), "a team that became smaller computed something else than one member");
}

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The member that takes a unit of the phase fails, the others leave; its message comes out.
void a_failing_member_stops_the_team() {
    for (const int size : kSizes) {
        for (int64_t round = 0; round < 50; ++round) {
            Grid grid;
            std::string message = "nothing was thrown";
            try {
                run_team(size, [&](cpu::Team& team, int index) {
                    walk(team, index, grid, round % 10);
                    if (team.take(index, size) == round % size) throw Failure("unit " + std::to_string(round % size));
                    team.barrier(index);
                    walk(team, index, grid, 1000000000);  // ends by the failure alone
                });
            } catch (const Failure& error) {
                message = error.what();
            }
            check(message == "unit " + std::to_string(round % size), "the failure came out as: " + message);
        }
    }
}

void of_many_failures_one_comes_out() {
    for (const int size : kSizes) {
        for (int round = 0; round < 200; ++round) {
            std::vector<int> thrown(size);
            int caught = -1;
            try {
                run_team(size, [&](cpu::Team& team, int index) {
                    team.barrier(index);
                    thrown[index] = 1;
                    throw index;
                });
            } catch (const int index) {
                caught = index;
            }
            check(caught >= 0 && thrown[caught] == 1, "none of the failures came out");
        }
    }
}

// Logits of three sequences: in one step, then token by token.
std::vector<float> logits_of(const cpu::Isa& isa, Type type, int num_threads) {
    const ModelShape shape{"", 40, 4, 2, 10, 72, 50, 2, true, true, true, Activation::silu};
    const Model model(shape, type);
    SmallDecoder decoder(entries_of(isa, type), model, num_threads, 3, 320);
    std::vector<float> logits = decoder.step({{0, 0, 300}, {1, 0, 2}, {2, 0, 31}});
    for (int64_t i = 0; i < 4; ++i) {
        for (const std::vector<Part>& parts :
             {std::vector<Part>{{0, 300 + i, 1}}, std::vector<Part>{{1, 2 + i, 1}, {2, 31 + i, 1}}}) {
            const std::vector<float> more = decoder.step(parts);
            logits.insert(logits.end(), more.begin(), more.end());
        }
    }
    return logits;
}

void a_team_gives_the_bits_of_one_thread() {
    std::vector<const cpu::Isa*> isas;  // the fastest one that runs here, and the one that runs everywhere
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (isas.empty() && isa->runs_here()) isas.push_back(isa);
    }
    isas.push_back(cpu::built_isas().back());
    for (const cpu::Isa* isa : isas) {
        for (const Type type : kTypes) {
            const std::vector<float> alone = logits_of(*isa, type, 1);
            for (const int size : {2, 4}) {
                check(std::memcmp(alone.data(), logits_of(*isa, type, size).data(), alone.size() * sizeof(float)) == 0,
                      std::string(isa->name) + ", " + name_of(type) + ": " + std::to_string(size) +
                          " threads give other bits than one");
            }
        }
    }
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"phases hand over plain memory", phases_hand_over_plain_memory},
            {"a phase waits for its slowest member", a_phase_waits_for_its_slowest_member},
            {"members take over units of one that is late", members_take_over_units_of_one_that_is_late},
            {"a smaller team than was asked for", a_smaller_team_than_was_asked_for},
            {"a failing member stops the team", a_failing_member_stops_the_team},
            {"of many failures one comes out", of_many_failures_one_comes_out},
            {"a team gives the bits of one thread", a_team_gives_the_bits_of_one_thread},
        },
        argc > 1 ? argv[1] : nullptr);
}
