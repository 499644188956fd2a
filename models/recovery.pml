/* Recovery, as a model for spin: every order of every step, for one lock, two clients and two or
 * three primaries that share a state directory. docs/recovery.md has the rules; their numbers stand
 * at the steps. `tests/test_model.py` runs it; by hand:
 *
 *     spin -a models/recovery.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan -m100000
 *     spin -a -DNO_WAIT models/recovery.pml && cc -O2 -DSAFETY -DBFS -o pan pan.c && ./pan
 *     spin -t -p -DNO_WAIT models/recovery.pml      # the shortest story that the second one found
 *
 * What must hold, in whatever order things happen:
 *   exclusion       nothing is granted while another client believes in the lock (granted), and who
 *                   believes anew has the newest grant: nobody had it in between (believed);
 *   two claims      never stand against each other (claimed);
 *   no silent loss  a primary that renews a client still has what this client holds (renewed);
 *   it ends         with -DENDS: a primary that runs is ready in time, whoever stays away.
 *
 * Time is ticks of one clock: drift, and the margins against it, are not here. Whoever is slow,
 * paused or dead takes no step while others do. A client has one request under way; one that is
 * lost, or its answer, is given up for the next. A request is carried out when it is sent, and the
 * answer takes its time: to be long on the way there is to be sent later and to believe less. Only
 * what a client claims is of the moment when it was sent. What lies on an old connection is dropped
 * by rule 14, which is taken for granted, as is the order of claims (rules 18, 19): a single lock
 * without shared holds or slots has no two claims. Tests of the engine have both.
 *
 * As it is, a second primary takes over from the first one, or follows it when it is known to be
 * dead. -DINTERRUPTED: the first one is dead, client 0 holds the lock, and the second one is followed
 * by a third. -DLEASES: client 0 takes its holds with a lease; one primary follows a dead one. Every
 * other -D plants a fault, which must be found. (A line break ends a statement in this language, so
 * operators stand at the ends of lines.)
 */
#define TTL 2       /* session_ttl, in ticks */
#define AUTHORITY 2 /* a primary serves so long after it has found itself to be the newest */
#ifdef LEASES
#define LEASE 4
#define LEASED(c) ((c) == 0)
#else
#define LEASE 0
#define LEASED(c) false
#endif
#define LONGER (LEASE > TTL -> LEASE : TTL)
#ifdef ENDS
#define GRANTS 1    /* in all */
#else
#define GRANTS 2
#endif

#ifndef EPOCHS
#ifdef INTERRUPTED
#define EPOCHS 3
#else
#define EPOCHS 2
#endif
#endif

/* ---- The state directory: the roster of each epoch -------------------------------------------- */

#define UNLISTED 0
#define LISTED 1
#define OVER 2       /* the session has ended, a lease of it runs on (rule 3) */
#define AT(e, c) ((e) * 2 + (c))

byte newest = 1;     /* the highest epoch that has a file */
byte listed[8];
bit late[4];         /* in the file: a former primary may run still, its roster is to be read again */

/* ---- Primaries, by epoch ---------------------------------------------------------------------- */

#define OFF 0
#define RECOVERING 1
#define READY 2
#define DEAD 3
#define UP(e) (primary[e] == RECOVERING || primary[e] == READY)

byte primary[4];
byte confirmed[4];   /* ticks for which it may answer (rule 7) */
byte quiet[4];       /* ticks until a former primary has stopped for certain (rule 8) */

#define NOBODY 0
#define AWAY 1       /* on the roster, not come yet */
#define CAME 2       /* has re-initialised and claimed, has not said that it is done */
#define HERE 3       /* back; at a primary that is ready, simply a session */
#define CUT 4        /* came, was not done in time: waited for once more, never taken back */
#define ENDED 5      /* only a lease of it runs */
#define STRUCK 6     /* over and struck, not freed yet */
#define UNWRITTEN 7  /* planted: answered before it is on the roster */
#define AWAITED(e, c) (session[AT(e, c)] == AWAY || session[AT(e, c)] == CAME || \
                       session[AT(e, c)] == CUT || session[AT(e, c)] == ENDED)

byte session[8];
byte left[8];        /* ticks until the session ends, or until one who is awaited is given up */

byte holder[4];      /* 0: free, else 1 + client */
byte token[4];       /* of the hold; the epoch is its upper part */
byte lease[4];       /* ticks that are left of the holder's lease */
bit certain[4];      /* rule 16 */
bit moved[4];        /* passed on already, before all were back */
#ifdef ENDS
byte recovering[4];  /* for how many ticks it has been */
#endif

/* ---- Clients ---------------------------------------------------------------------------------- */

#define STRANGER 0
#define MEMBER 1
#define REMOVED 2

byte client[2];
byte seen[2];        /* the epoch that it obeys, and speaks to (rule 13) */
bit done[2];         /* it has said there that all is claimed */
byte hold[2];        /* the token of its hold; 0: none */
byte believes_session[2], believes_lease[2]; /* for how many ticks it may */
#define BELIEVES(c) (hold[c] != 0 && (LEASED(c) -> believes_lease[c] : believes_session[c]) > 0)

#define NOTHING 0
#define JOIN 1
#define REINIT 2
#define FINISH 3
#define ASK 4        /* PING and EXTEND, or LOCK */

#define UNANSWERED 0
#define YES 1        /* carried out; told[] says what is held */
#define GONE 2       /* the session is over */
#define NOT_READY 3

byte op[2];          /* the request that is under way */
byte to[2];          /* to which epoch */
byte age[2];         /* ticks since before it was sent */
byte answer[2];
byte told[2];        /* with it: the token of the hold; 0: none */
byte remains[2];     /* with it: what remains of its lease */

#define NO_CLAIM 0
#define LIVE 1
#define LAPSED 2
byte claim[2];       /* with REINIT */

/* What only the observer knows: */
byte last_token;     /* of the newest grant of all */
byte grants;

/* ---- What a primary does with a request ------------------------------------------------------- */

#ifdef AUTHORITY_NOT_CHECKED
#define ANSWERS(e) UP(e)
#else
#define ANSWERS(e) (UP(e) && confirmed[e] > 0)
#endif
#define SERVED(e, c) (session[AT(e, c)] == HERE || session[AT(e, c)] == UNWRITTEN || \
                      (session[AT(e, c)] == CAME && primary[e] == RECOVERING))
#define PASSES_ON(e) (primary[e] == READY || certain[e])
#define LEASE_OVER(e) (holder[e] != 0 && LEASED(holder[e] - 1) && lease[e] == 0 && \
                       primary[e] == READY)
#define TO_BE_HAD(e, c) (PASSES_ON(e) && (holder[e] == c + 1 || \
                         (grants < GRANTS && (holder[e] == 0 || LEASE_OVER(e)))))

inline forgotten(c) {
    op[c] = NOTHING;
    to[c] = 0;
    age[c] = 0;
    claim[c] = NO_CLAIM;
    answer[c] = UNANSWERED;
    told[c] = 0;
    remains[c] = 0
}

inline asked(e, c, what) {
    forgotten(c);
    op[c] = what;
    to[c] = e
}

inline held_here(e, c) {
    answer[c] = YES;
    claim[c] = NO_CLAIM;
    told[c] = (holder[e] == c + 1 -> token[e] : 0);
    remains[c] = (holder[e] == c + 1 && LEASED(c) -> lease[e] : 0)
}

/* An answer that renews. If what the client holds were not here, it would hide the loss. */
inline renewed(e, c) {
    left[AT(e, c)] = (primary[e] == READY -> TTL : left[AT(e, c)]);
    lease[e] = (LEASED(c) && holder[e] == c + 1 -> LEASE : lease[e]);
    assert(hold[c] == 0 || LEASED(c) || (holder[e] == c + 1 && token[e] == hold[c]));
    held_here(e, c)
}

inline granted(e, c) {
    if
    :: holder[e] != c + 1 ->
        assert(!BELIEVES(1 - c));
        token[e] = e * 4 + grants;
        last_token = token[e];
        grants++;
        holder[e] = c + 1;
        lease[e] = (LEASED(c) -> LEASE : 0)
    :: else
    fi;
    left[AT(e, c)] = (primary[e] == READY -> TTL : left[AT(e, c)]);
    moved[e] = (primary[e] == RECOVERING);
    held_here(e, c)
}

inline freed(e, c) {
    if
    :: holder[e] == c + 1 ->
        holder[e] = 0;
        token[e] = 0;
        lease[e] = 0
    :: else
    fi
}

#ifdef LAPSED_LEASE_ACCEPTED
#define BELIEVED(c) (claim[c] != NO_CLAIM)
#else
#define BELIEVED(c) (claim[c] == LIVE || (claim[c] == LAPSED && !LEASED(c))) /* rule 17 */
#endif

inline claimed(e, c) {
    if
    :: BELIEVED(c) && holder[e] != c + 1 && !moved[e] ->
        assert(holder[e] == 0);
        holder[e] = c + 1;
        token[e] = hold[c];
        lease[e] = (LEASED(c) -> believes_lease[c] : 0);
        certain[e] = (claim[c] == LIVE) /* rule 16 */
    :: else -> assert(claim[c] != LIVE || holder[e] == c + 1)
    fi;
    held_here(e, c)
}

/* The client says its id; here it is told whether it has a session, and what becomes of its hold. */
inline reinitialised(e, c) {
    if
    :: primary[e] == RECOVERING && (session[AT(e, c)] == AWAY || SERVED(e, c)) ->
#ifdef BACK_WHEN_COME
        session[AT(e, c)] = HERE;
        told[c] = hold[c];
        answer[c] = YES
#else
        session[AT(e, c)] = (session[AT(e, c)] == AWAY -> CAME : session[AT(e, c)]);
        claimed(e, c)
#endif
    :: primary[e] == READY && SERVED(e, c) ->
        left[AT(e, c)] = TTL;
        held_here(e, c)
#ifdef LATE_CLAIM_ACCEPTED
    :: primary[e] == READY && session[AT(e, c)] == NOBODY && holder[e] == 0 && hold[c] != 0 ->
        session[AT(e, c)] = HERE;
        left[AT(e, c)] = TTL;
        listed[AT(e, c)] = LISTED;
        holder[e] = c + 1;
        token[e] = hold[c];
        held_here(e, c)
#endif
#ifdef LOST_UNTOLD
    :: primary[e] == READY && session[AT(e, c)] == NOBODY -> /* a session anew, as if nothing was */
        session[AT(e, c)] = HERE;
        left[AT(e, c)] = TTL;
        listed[AT(e, c)] = LISTED;
        told[c] = hold[c];
        answer[c] = YES
#endif
    :: else -> answer[c] = GONE /* rules 10, 11, 21 */
    fi
}

/* ---- What it does by itself ------------------------------------------------------------------- */

#ifdef WAIT_WITHOUT_AUTHORITY
#define WAIT(c) (LEASED(c) -> LONGER : TTL)
#elif defined(LEASE_NOT_WAITED)
#define WAIT(c) TTL
#elif defined(NO_WAIT)
#define WAIT(c) 0
#else
#define WAIT(c) (AUTHORITY + (LEASED(c) -> LONGER : TTL)) /* rule 9 */
#endif

/* On the roster of the former primary; or of the one before it, if that may run still: then it may
 * have been struck since, and is waited for, but not taken back. */
#define FORMER(e, c) (listed[AT(e - 1, c)] != UNLISTED -> listed[AT(e - 1, c)] : \
                      (e == 3 && late[2] && listed[AT(1, c)] != UNLISTED -> OVER : UNLISTED))

inline listed_as(e, c, waited) {
    left[AT(e, c)] = (FORMER(e, c) == UNLISTED -> 0 :
                      (session[AT(e, c)] == NOBODY -> WAIT(c) - waited : left[AT(e, c)]));
    session[AT(e, c)] = (FORMER(e, c) == LISTED -> AWAY : (FORMER(e, c) == OVER -> ENDED : NOBODY));
#ifndef ROSTER_NOT_COPIED
    listed[AT(e, c)] = FORMER(e, c) /* rule 6 */
#endif
}

/* Nobody will read it again. */
inline forget_former(e) {
    listed[AT(e - 1, 0)] = (late[e] -> listed[AT(e - 1, 0)] : UNLISTED);
    listed[AT(e - 1, 1)] = (late[e] -> listed[AT(e - 1, 1)] : UNLISTED)
}

/* Those that are known to be dead are taken out first. */
inline started(e) {
    listed_as(e, 0, 0);
    listed_as(e, 1, 0);
#ifndef TAKE_OVER_AT_ONCE
    late[e] = (UP(e - 1) || (e == 3 && late[2] && UP(1))); /* rule 8 */
#endif
    newest = e;
    primary[e] = RECOVERING;
    confirmed[e] = AUTHORITY;
    quiet[e] = (late[e] -> AUTHORITY : 0);
    forget_former(e)
}

/* The former primary has stopped: whom it has taken in since, and struck (rule 8). */
inline read_again(e) {
    listed_as(e, 0, AUTHORITY);
    listed_as(e, 1, AUTHORITY);
    late[e] = 0;
    forget_former(e)
}

inline evicted(e, c) {
#ifndef EVICTED_NOT_STRUCK
    listed[AT(e, c)] = UNLISTED; /* rule 10 */
#endif
    session[AT(e, c)] = NOBODY;
    freed(e, c)
}

/* May have been confirmed just now, so it is waited for once more (rule 11). */
inline cut(e, c) {
#ifdef EVICTED_AT_ONCE
    evicted(e, c)
#else
    session[AT(e, c)] = CUT;
    left[AT(e, c)] = LONGER
#endif
}

#ifdef ENDED_NOT_LISTED
#define LEASE_RUNS(e, c) false
#else
#define LEASE_RUNS(e, c) (LEASED(c) && holder[e] == c + 1 && lease[e] > 0) /* rule 3 */
#endif

inline expired(e, c) {
    session[AT(e, c)] = (LEASE_RUNS(e, c) -> ENDED : STRUCK);
#ifdef FREED_BEFORE_STRUCK
    freed(e, c)
#else
    listed[AT(e, c)] = (LEASE_RUNS(e, c) -> OVER : UNLISTED)
#endif
}

inline over(e, c) {
    listed[AT(e, c)] = UNLISTED;
    session[AT(e, c)] = NOBODY;
    freed(e, c) /* rule 2 */
}

inline ready(e) {
    primary[e] = READY;
    certain[e] = 0;
    moved[e] = 0;
    left[AT(e, 0)] = (session[AT(e, 0)] == HERE -> TTL : 0);
    left[AT(e, 1)] = (session[AT(e, 1)] == HERE -> TTL : 0);
    lease[e] = (holder[e] != 0 && LEASED(holder[e] - 1) ->
                (lease[e] > TTL -> lease[e] : TTL) : 0) /* rule 20 */
}

inline dead(e) {
    primary[e] = DEAD;
    confirmed[e] = 0;
    quiet[e] = 0;
    session[AT(e, 0)] = NOBODY;
    session[AT(e, 1)] = NOBODY;
    left[AT(e, 0)] = 0;
    left[AT(e, 1)] = 0;
    holder[e] = 0;
    token[e] = 0;
    lease[e] = 0;
    certain[e] = 0;
    moved[e] = 0
}

#define RECOVERS(e) (primary[e] == RECOVERING && !late[e])
#define GIVEN_UP(e, c, state) (RECOVERS(e) && left[AT(e, c)] == 0 && session[AT(e, c)] == state)
#define NOBODY_AWAITED(e) (RECOVERS(e) && !AWAITED(e, 0) && !AWAITED(e, 1))

proctype Sessions(byte e, c) {
end: do
    :: d_step { ANSWERS(e) && !late[e] && op[c] == REINIT && to[c] == e &&
                answer[c] == UNANSWERED -> reinitialised(e, c) }
    :: d_step { primary[e] == READY && ANSWERS(e) && session[AT(e, c)] == HERE &&
                left[AT(e, c)] == 0 -> expired(e, c) }
    :: d_step { primary[e] == READY && ANSWERS(e) && !LEASE_RUNS(e, c) &&
                (session[AT(e, c)] == STRUCK || session[AT(e, c)] == ENDED) -> over(e, c) }
#ifndef WAITS_FOR_EVER
    :: d_step { GIVEN_UP(e, c, AWAY) -> evicted(e, c) }
    :: d_step { GIVEN_UP(e, c, CUT) -> evicted(e, c) }
    :: d_step { GIVEN_UP(e, c, ENDED) -> evicted(e, c) }
#endif
    :: d_step { GIVEN_UP(e, c, CAME) -> cut(e, c) }
#ifdef ANSWERED_BEFORE_WRITTEN
    :: d_step { UP(e) && session[AT(e, c)] == UNWRITTEN ->
        session[AT(e, c)] = HERE;
        listed[AT(e, c)] = LISTED }
#endif
    od
}

proctype Primary(byte e) {
end: do
#if !defined(LEASES) && !defined(INTERRUPTED)
    :: d_step { e > 1 && primary[e] == OFF && newest == e - 1 -> started(e) } /* by taking over */
#endif
    :: d_step { e > 1 && primary[e] == OFF && newest == e - 1 ->
        dead(e - 1); /* when it took its last step does not matter */
        started(e) }
#ifdef CONFIRMED_AFTER_THE_LOOK
    :: d_step { UP(e) && confirmed[e] == 0 && quiet[e] < 9 && newest == e -> quiet[e] = 9 }
    :: d_step { UP(e) && quiet[e] == 9 ->
        quiet[e] = 0;
        confirmed[e] = AUTHORITY }
#else
    :: d_step { UP(e) && confirmed[e] == 0 && newest == e -> confirmed[e] = AUTHORITY } /* rule 7 */
#endif
    :: d_step { primary[e] == RECOVERING && late[e] && quiet[e] == 0 -> read_again(e) }
    :: d_step { NOBODY_AWAITED(e) -> ready(e) }
    od
}

/* ---- A client --------------------------------------------------------------------------------- */

#ifdef COUNTED_FROM_RECEIPT
#define LEFT_OF(c, ticks) (ticks)
#else
#define LEFT_OF(c, ticks) ((ticks) > age[c] -> (ticks) - age[c] : 0) /* rule 12 */
#endif
#define LATER(one, other) ((one) > (other) -> (one) : (other))

inline gone(c) {
    client[c] = REMOVED; /* and with it the hold: LOST, as it is told */
    hold[c] = 0;
    believes_session[c] = 0;
    believes_lease[c] = 0;
    forgotten(c)
}

inline believed(c) {
    believes_session[c] = (hold[c] == 0 -> 0 : LATER(believes_session[c], LEFT_OF(c, TTL)));
    believes_lease[c] = (hold[c] == 0 || !LEASED(c) -> 0 :
                         LATER(believes_lease[c], LEFT_OF(c, remains[c])));
    assert(!BELIEVES(c) || hold[c] == last_token);
    assert(!BELIEVES(0) || !BELIEVES(1))
}

/* An answer has come. */
inline taken(c) {
    assert(to[c] >= seen[c]); /* with one directory rule 13 is a second line */
    if
    :: answer[c] == YES ->
        done[c] = (op[c] == JOIN || op[c] == FINISH ||
                   (op[c] == ASK && done[c]) || (op[c] == REINIT && primary[to[c]] == READY));
        client[c] = MEMBER;
        seen[c] = to[c];
        hold[c] = told[c];
        believed(c);
        forgotten(c)
    :: answer[c] == GONE -> gone(c)
#ifdef NOT_READY_RENEWS
    :: answer[c] == NOT_READY ->
        remains[c] = believes_lease[c];
        believed(c);
        forgotten(c)
#endif
    :: else -> forgotten(c)
    fi
}

#define SPEAKS(c) (client[c] == MEMBER && ANSWERS(seen[c]) && SERVED(seen[c], c))
#define COMES(e, c) (client[c] == MEMBER && seen[c] != e && UP(e)) /* its addresses in turn */

inline comes(e, c) {
    asked(e, c, REINIT);
    claim[c] = (hold[c] == 0 -> NO_CLAIM : (BELIEVES(c) -> LIVE : LAPSED))
}

inline joins(e, c) {
    asked(e, c, JOIN);
#ifdef ANSWERED_BEFORE_WRITTEN
    session[AT(e, c)] = UNWRITTEN;
#else
    session[AT(e, c)] = HERE; /* rule 1 */
    listed[AT(e, c)] = LISTED;
#endif
    left[AT(e, c)] = TTL;
    held_here(e, c)
}

inline gives_up(c) {
    hold[c] = 0;
    believes_session[c] = 0;
    believes_lease[c] = 0;
    forgotten(c)
}

proctype Client(byte c) {
end: do
    :: d_step { client[c] == STRANGER && op[c] == NOTHING && primary[newest] == READY &&
                ANSWERS(newest) && session[AT(newest, c)] == NOBODY -> joins(newest, c) }
    :: d_step { COMES(1, c) -> comes(1, c) }
    :: d_step { COMES(2, c) -> comes(2, c) }
#if EPOCHS == 3
    :: d_step { COMES(3, c) -> comes(3, c) }
#endif
    :: d_step { SPEAKS(c) && !done[c] ->
        asked(seen[c], c, FINISH);
        session[AT(seen[c], c)] = HERE;
#ifdef BACK_WHEN_COME
        claim[c] = (hold[c] == 0 -> NO_CLAIM : (BELIEVES(c) -> LIVE : LAPSED));
        claimed(seen[c], c);
#endif
        renewed(seen[c], c) }
    :: d_step { SPEAKS(c) ->
        asked(seen[c], c, ASK);
        renewed(seen[c], c) }
    :: d_step { SPEAKS(c) && hold[c] == 0 && TO_BE_HAD(seen[c], c) ->
        asked(seen[c], c, ASK);
        granted(seen[c], c) }
    :: d_step { SPEAKS(c) && hold[c] != 0 && PASSES_ON(seen[c]) && holder[seen[c]] == c + 1 &&
                token[seen[c]] == hold[c] -> /* unlocks */
        freed(seen[c], c);
        gives_up(c) }
    :: d_step { hold[c] != 0 -> gives_up(c) } /* the same, and the request is lost */
    :: d_step { client[c] == MEMBER && ANSWERS(seen[c]) && primary[seen[c]] == READY &&
                !SERVED(seen[c], c) -> gone(c) }
#ifdef NOT_READY_RENEWS
    :: d_step { client[c] == MEMBER && seen[c] < newest && primary[newest] == RECOVERING ->
        asked(newest, c, ASK);
        answer[c] = NOT_READY }
#endif
    :: d_step { answer[c] != UNANSWERED -> taken(c) }
    od
}

/* ---- Time ------------------------------------------------------------------------------------- */

#ifdef CONFIRMED_AFTER_THE_LOOK
#define STILL_LOOKS(e) && quiet[e] != 9
#else
#define STILL_LOOKS(e)
#endif
#define DOWN(ticks) ticks = (ticks > 0 -> ticks - 1 : 0)

inline tick_primary(e) {
    DOWN(confirmed[e]);
#ifdef CONFIRMED_AFTER_THE_LOOK
    quiet[e] = (quiet[e] == 9 -> 9 : (quiet[e] > 0 -> quiet[e] - 1 : 0));
#else
    DOWN(quiet[e]);
#endif
    DOWN(left[AT(e, 0)]);
    DOWN(left[AT(e, 1)]);
    lease[e] = (primary[e] == READY && lease[e] > 0 -> lease[e] - 1 : lease[e])
}

inline tick_client(c) {
    DOWN(believes_session[c]);
    DOWN(believes_lease[c]);
    age[c] = (op[c] != NOTHING && age[c] < LONGER -> age[c] + 1 : age[c])
}

#ifdef ENDS
/* A primary that is not kept from running does in time what is to be done by time. */
#define DUE(e) ((primary[e] == RECOVERING && late[e] && quiet[e] == 0) || NOBODY_AWAITED(e) || \
                (RECOVERS(e) && ((left[AT(e, 0)] == 0 && AWAITED(e, 0)) || \
                                 (left[AT(e, 1)] == 0 && AWAITED(e, 1)))))
#ifdef WAITS_FOR_EVER
#define IN_TIME true
#else
#define IN_TIME (!DUE(2) && !DUE(3))
#endif
#define BOUND (AUTHORITY + LONGER + LONGER)

inline in_time(e) {
    recovering[e] = (primary[e] == RECOVERING -> recovering[e] + 1 : 0);
    assert(recovering[e] <= BOUND)
}
#else
#define IN_TIME true
#endif

/* It will find that it was replaced. Until it looks it does nothing more that could be seen. */
inline stops(e) {
    if
#ifndef AUTHORITY_NOT_CHECKED
    :: UP(e) && newest > e && confirmed[e] == 0 STILL_LOOKS(e) -> dead(e)
#endif
    :: else
    fi
}

proctype Time() {
end: do
    :: d_step { IN_TIME ->
        tick_primary(1);
        tick_primary(2);
#if EPOCHS == 3
        tick_primary(3);
#endif
        tick_client(0);
        tick_client(1);
        stops(1);
        stops(2)
#ifdef ENDS
        ;
        in_time(2)
#endif
        }
    od
}

inline member(c) {
    listed[AT(1, c)] = LISTED;
    client[c] = MEMBER;
    seen[c] = 1;
    done[c] = 1
}

init {
    atomic {
        member(0);
#ifdef INTERRUPTED
        primary[1] = DEAD;
        if
        :: member(1)
        :: skip
        fi;
        hold[0] = 4;
        last_token = 4;
        grants = 1;
        believes_session[0] = TTL;
        believes_lease[0] = LEASE;
#else
        primary[1] = READY;
        confirmed[1] = AUTHORITY;
        session[AT(1, 0)] = HERE;
        left[AT(1, 0)] = TTL;
        run Primary(1);
        run Sessions(1, 0);
        run Sessions(1, 1);
#endif
        run Primary(2);
        run Sessions(2, 0);
        run Sessions(2, 1);
#if EPOCHS == 3
        run Primary(3);
        run Sessions(3, 0);
        run Sessions(3, 1);
#endif
        run Client(0);
        run Client(1);
        run Time()
    }
}
