import { expect, test } from 'vitest'
import { type Member, type MemberState, planRollout, type Rollout, type Step } from './rollout.ts'

const now = new Date('2026-01-05T12:00:00Z')
const ago = (seconds: number) => new Date(now.getTime() - seconds * 1000)
/** `m` moved, `M` moved just now, `b` moved and broken, `w` waiting, `o` moving, `f` failed, `v` reverting, `r` reverted, `a` asleep,
 * `s` waiting and suspended */
const members = (letters: string, part: Partial<Member> = {}): Member[] =>
  [...letters].map((letter, at) => {
    const states: Record<string, MemberState> = {
      m: 'moved',
      M: 'moved',
      b: 'moved',
      w: 'waiting',
      o: 'moving',
      f: 'failed',
      v: 'reverting',
      r: 'reverted',
      a: 'asleep',
      s: 'waiting',
    }
    return {
      userId: String(at),
      state: states[letter]!,
      movedAt: letter === 'M' ? ago(5) : 'mbf'.includes(letter) ? ago(60) : null,
      broken: letter === 'b',
      canProve: letter !== 's',
      failingBefore: false,
      requests: 0,
      failures: 0,
      toolCalls: 0,
      toolErrors: 0,
      ...part,
    }
  })
const rollout = (letters: string, part: Partial<Rollout> = {}): Rollout => ({
  state: 'running',
  reasonCode: null,
  batchSize: 2,
  maxUnavailable: 0,
  observeSeconds: 30,
  maxErrorRate: 0.05,
  usual: { calls: 1_000, errors: 100 },
  members: members(letters),
  ...part,
})
const move = (...userIds: string[]): Step => ({ do: 'move', userIds, wake: false })
/** the image is not proved yet */
const prove = (userId: string): Step => ({ do: 'move', userIds: [userId], wake: true })
const revert = (...userIds: string[]): Step => ({ do: 'revert', userIds })
const rollBack = (code: string) => expect.objectContaining({ do: 'roll-back', code })
const wait: Step = { do: 'wait' }

const cases: [name: string, rollout: Rollout, expected: unknown][] = [
  ['the canary goes alone', rollout('wwwww'), prove('0')],
  ['the canary is watched', rollout('Mwwww'), wait],
  ['then a batch', rollout('mwwww'), move('1', '2')],
  ['a batch is watched', rollout('mMMww'), wait],
  ['the last batch may be smaller', rollout('mmmmw'), move('4')],
  ['nothing new begins while somebody moves', rollout('mmoww'), move('2')],
  ['whoever was moving when the leader died is moved again', rollout('moo'), move('1', '2')],
  ['the last batch is watched, too', rollout('mmM'), wait],
  ['all moved: done', rollout('mmm'), { do: 'finish', state: 'done' }],
  ['nobody there: nothing was proved', rollout(''), rollBack('unproven')],
  ['one who may not be started cannot be the canary', rollout('sww'), prove('1')],
  ['nobody may be started: nothing was proved', rollout('ss'), rollBack('unproven')],
  ['those who sleep are no proof: one of them is woken', rollout('aaa'), prove('0')],
  ['those who sleep are not waited for', rollout('maa'), { do: 'finish', state: 'done' }],
  ['all that proved it are gone, so another one does', rollout('aww'), prove('1')],
  ['after a canary that may fail the next one goes alone, too', rollout('fww', { maxUnavailable: 1 }), prove('1')],
  ['one that breaks is no proof', rollout('bw', { maxUnavailable: 1 }), prove('1')],
  ['a canary that was cut short is woken again', rollout('oww'), prove('0')],
  [
    'whoever failed before is not counted',
    rollout('mf', { members: [...members('m'), ...members('f', { failingBefore: true })] }),
    { do: 'finish', state: 'done' },
  ],
  ['no watching when none is wanted', rollout('Mww', { observeSeconds: 0 }), move('1', '2')],
  ['a canary that fails takes everything back', rollout('fwwww'), rollBack('members-failed')],
  ['a moved one that breaks later, too', rollout('mbwww'), rollBack('members-failed')],
  ['some may fail when that is allowed', rollout('mfwww', { maxUnavailable: 1 }), move('2', '3')],
  ['but not more', rollout('mffww', { maxUnavailable: 1 }), rollBack('members-failed')],
  [
    'failures allowed are no reason not to finish',
    rollout('mfm', { maxUnavailable: 1 }),
    { do: 'finish', state: 'done' },
  ],
  [
    'errors above the limit take everything back',
    rollout('mw', { members: members('mw', { requests: 100, failures: 6 }) }),
    rollBack('error-rate'),
  ],
  [
    'errors within the limit do not',
    rollout('mw', { members: members('mw', { requests: 100, failures: 5 }) }),
    move('1'),
  ],
  [
    'a few errors of very few requests do not',
    rollout('mw', { members: members('mw', { requests: 4, failures: 2 }) }),
    move('1'),
  ],
  [
    'tools that fail although every exchange is fine take everything back',
    rollout('mw', { members: members('mw', { requests: 30, toolCalls: 20, toolErrors: 20 }) }),
    rollBack('error-rate'),
  ],
  [
    'tools that fail as often as ever do not',
    rollout('mw', { members: members('mw', { toolCalls: 100, toolErrors: 15 }) }),
    move('1'),
  ],
  [
    'nor do a few more than ever, which may be chance',
    rollout('mw', { members: members('mw', { toolCalls: 20, toolErrors: 6 }) }),
    move('1'),
  ],
  [
    'without anything to compare with, half of them may fail',
    rollout('mw', { members: members('mw', { toolCalls: 40, toolErrors: 20 }), usual: { calls: 3, errors: 0 } }),
    move('1'),
  ],
  [
    'but not nearly all',
    rollout('mw', { members: members('mw', { toolCalls: 40, toolErrors: 30 }), usual: { calls: 3, errors: 0 } }),
    rollBack('error-rate'),
  ],
  [
    'a few tool calls tell nothing',
    rollout('mw', { members: members('mw', { toolCalls: 19, toolErrors: 19 }) }),
    move('1'),
  ],
  [
    'errors of users who were not moved do not count',
    rollout('ww', { members: members('ww', { requests: 100, failures: 90 }) }),
    prove('0'),
  ],
  ['paused: nothing', rollout('mww', { state: 'paused' }), wait],
  ['paused: what breaks is still noticed', rollout('bww', { state: 'paused' }), rollBack('members-failed')],
  ['going back takes whoever moved, moves or failed', rollout('mofww', { state: 'rolling-back' }), revert('0', '1')],
  ['going back takes those who sleep, too', rollout('aa', { state: 'rolling-back' }), revert('0', '1')],
  ['going back goes on with those it began', rollout('rvmmw', { state: 'rolling-back' }), revert('1', '2')],
  ['those who never moved stay', rollout('rrrww', { state: 'rolling-back' }), { do: 'finish', state: 'rolled-back' }],
  [
    'an aborted one says so',
    rollout('rww', { state: 'rolling-back', reasonCode: 'aborted' }),
    { do: 'finish', state: 'aborted' },
  ],
  ...(['done', 'rolled-back', 'aborted'] as const).map((state): [string, Rollout, unknown] => [
    `${state}: nothing`,
    rollout('mw', { state }),
    wait,
  ]),
]

test.for(cases)('%s', ([, given, expected]) => {
  expect(planRollout(given, now)).toEqual(expected)
})

test('whatever fails on the way, a rollout ends, and in one of its ends', () => {
  let seed = 1
  const random = () => {
    seed = (seed * 16_807) % 2_147_483_647
    return seed / 2_147_483_647
  }
  for (let round = 0; round < 200; round++) {
    const subject = rollout('w'.repeat(1 + Math.floor(random() * 12)), {
      batchSize: 1 + Math.floor(random() * 4),
      maxUnavailable: Math.floor(random() * 3),
    })
    let clock = now.getTime()
    for (let step = 0; ; step++) {
      expect(step).toBeLessThan(500)
      clock += 10_000
      const next = planRollout(subject, new Date(clock))
      if (next.do === 'finish') break
      if (next.do === 'roll-back') subject.state = 'rolling-back'
      if (next.do === 'move' && next.wake) expect(next.userIds).toHaveLength(1)
      if (next.do !== 'move' && next.do !== 'revert') continue
      for (const member of subject.members.filter(({ userId }) => next.userIds.includes(userId))) {
        // a leader that dies leaves them half-way
        if (random() < 0.1) member.state = next.do === 'move' ? 'moving' : 'reverting'
        else if (next.do === 'revert') member.state = 'reverted'
        else {
          member.state = random() < 0.15 ? 'failed' : random() < 0.3 && !next.wake ? 'asleep' : 'moved'
          if (member.state !== 'asleep') member.movedAt = new Date(clock)
        }
      }
    }
    const states = new Set(subject.members.map(({ state }) => state))
    if (subject.state === 'rolling-back')
      expect([...states].every(state => ['reverted', 'waiting'].includes(state))).toBe(true)
    else if (subject.members.length > 0) {
      expect(states).toContain('moved')
      expect([...states].every(state => ['moved', 'asleep', 'failed'].includes(state))).toBe(true)
    }
  }
})
