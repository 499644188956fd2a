/*
 * What the book has to tell without being asked: notices, in the order in which things happened,
 * until the shell takes them. Each is about a change and is told once. A client without a number
 * has nobody to tell. It may not do I/O or read a clock.
 */
#include "client_book.h"

#include <stdlib.h>

enum { NOTICES_FIRST = 16 };

static bool make_room(struct dlk_news *news)
{
    if (news->count < news->room) {
        return true;
    }
    uint32_t room = news->room == 0 ? NOTICES_FIRST : 2 * news->room;
    struct dlk_notice *wider = realloc(news->notices, room * sizeof(*wider));
    if (wider == NULL) {
        return false;
    }
    news->notices = wider;
    news->room = room;
    return true;
}

void dlk_book_tell(struct dlk_book *book, const struct dlk_hold *hold, enum dlk_notice_kind kind)
{
    struct dlk_news *news = &book->news;
    if (book->number == 0) {
        return;
    }
    news->any = true;
    if (!make_room(news)) {
        news->overflow = true;
        return;
    }
    news->notices[news->count++] = (struct dlk_notice){
        .client = book->number,
        .owner = hold != NULL ? hold->owner : 0,
        .token = hold != NULL ? hold->now.token : 0,
        .lock_id = hold != NULL ? hold->lock_id : 0,
        .kind = (uint32_t)kind,
    };
}

void dlk_book_told(struct dlk_book *book)
{
    book->news.count = 0;
    book->news.overflow = false;
    book->news.any = false;
}
