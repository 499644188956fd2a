/* How long to spin, as a function of what earlier waits were worth. */
#include "adaptive.h"

#include <assert.h>

#include "clock.h"

static void block_never_spins_and_poll_never_sleeps(void)
{
    struct dlk_adaptive adaptive;

    dlk_adaptive_init(&adaptive, DLK_WAIT_BLOCK, 100);
    dlk_adaptive_learn(&adaptive, 1000, true);
    assert(dlk_adaptive_budget_ns(&adaptive, false) == 0);
    dlk_adaptive_init(&adaptive, DLK_WAIT_POLL, 100);
    dlk_adaptive_learn(&adaptive, 1000000000, false);
    assert(dlk_adaptive_budget_ns(&adaptive, true) == UINT64_MAX);
}

static void vain_spins_halve_the_budget_to_nothing(void)
{
    struct dlk_adaptive adaptive;
    uint64_t last_ns;

    dlk_adaptive_init(&adaptive, DLK_WAIT_ADAPTIVE, 100);
    last_ns = dlk_adaptive_budget_ns(&adaptive, false);
    assert(last_ns == 100 * DLK_NS_PER_US);
    for (int i = 0; i < 10; i++) {
        dlk_adaptive_learn(&adaptive, DLK_NS_PER_MS, true);
        assert(dlk_adaptive_budget_ns(&adaptive, false) <= last_ns / 2);
        last_ns = dlk_adaptive_budget_ns(&adaptive, false);
    }
    assert(last_ns == 0);
}

static void a_message_that_came_soon_raises_it(void)
{
    struct dlk_adaptive adaptive;

    dlk_adaptive_init(&adaptive, DLK_WAIT_ADAPTIVE, 100);
    for (int i = 0; i < 10; i++) {
        dlk_adaptive_learn(&adaptive, DLK_NS_PER_MS, true);
    }
    dlk_adaptive_learn(&adaptive, 10 * DLK_NS_PER_US, true); /* soon after falling asleep */
    assert(dlk_adaptive_budget_ns(&adaptive, false) >= 10 * DLK_NS_PER_US);
    dlk_adaptive_learn(&adaptive, 30 * DLK_NS_PER_US, false);
    assert(dlk_adaptive_budget_ns(&adaptive, false) >= 30 * DLK_NS_PER_US);
    dlk_adaptive_learn(&adaptive, 90 * DLK_NS_PER_US, false);
    assert(dlk_adaptive_budget_ns(&adaptive, false) == 100 * DLK_NS_PER_US); /* never above */
    dlk_adaptive_learn(&adaptive, 1 * DLK_NS_PER_US, false); /* a quick one costs nothing */
    assert(dlk_adaptive_budget_ns(&adaptive, false) == 100 * DLK_NS_PER_US);
}

static void an_overloaded_machine_is_not_spun_on(void)
{
    struct dlk_adaptive adaptive;

    dlk_adaptive_init(&adaptive, DLK_WAIT_ADAPTIVE, 0);
    assert(dlk_adaptive_budget_ns(&adaptive, false) > 0);
    assert(dlk_adaptive_budget_ns(&adaptive, true) == 0);
    assert(dlk_adaptive_budget_ns(&adaptive, false) > 0); /* and it forgets nothing by that */
}

/* What it says depends on the machine; that it can be asked, often and with any time, does not. */
static void the_machine_can_be_asked(void)
{
    uint64_t before_ns = dlk_now_ns();

    for (uint64_t i = 0; i < 100; i++) {
        (void)dlk_overloaded(before_ns + i * 20 * DLK_NS_PER_MS);
    }
    (void)dlk_overloaded(0);
    assert(dlk_now_ns() >= before_ns);
}

int main(void)
{
    block_never_spins_and_poll_never_sleeps();
    vain_spins_halve_the_budget_to_nothing();
    a_message_that_came_soon_raises_it();
    an_overloaded_machine_is_not_spun_on();
    the_machine_can_be_asked();
    return 0;
}
