/*
 * The clock: it is the machine's, unless somebody has set it.
 */
#include "clock.h"

#include <assert.h>

static void it_goes_on(void)
{
    uint64_t before_ns = dlk_now_ns();
    uint64_t begun_ns = before_ns;

    while (before_ns == begun_ns) {
        uint64_t now_ns = dlk_now_ns();
        assert(now_ns >= before_ns);
        before_ns = now_ns;
    }
}

static void it_stands_where_it_was_set(void)
{
    const uint64_t hour_ns = 3600 * (uint64_t)DLK_NS_PER_S;
    uint64_t real_ns = dlk_now_ns();

    dlk_clock_set(7);
    assert(dlk_now_ns() == 7 && dlk_now_ns() == 7);
    dlk_clock_set(real_ns + hour_ns);
    assert(dlk_now_ns() == real_ns + hour_ns);
    dlk_clock_set(3); /* nobody keeps it from going back: that is for who sets it */
    assert(dlk_now_ns() == 3);
    dlk_clock_set(0);
    assert(dlk_now_ns() >= real_ns && dlk_now_ns() < real_ns + hour_ns);
}

int main(void)
{
    it_goes_on();
    it_stands_where_it_was_set();
    it_goes_on();
    return 0;
}
