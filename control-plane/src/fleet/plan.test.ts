import { describe, expect, test } from 'vitest'
import { type Action, type Known, plan, type Situation, type Wanted } from './plan.ts'
import type { ObservedInstance } from './runtime.ts'

const now = new Date('2026-03-01T12:00:00Z')
const ago = (seconds: number) => new Date(now.getTime() - seconds * 1000)
const ahead = (seconds: number) => ago(-seconds)

const alice: Wanted = { userId: 'a', username: 'alice', generation: 2, image: 'img:2', state: 'running' }
const row = (part: Partial<Known>): Known => ({
  state: 'ready',
  reasonCode: null,
  reason: null,
  containerId: 'c2',
  generation: 2,
  failures: 0,
  retryAt: null,
  changedAt: ago(60),
  ...part,
})
const container = (part: Partial<ObservedInstance> = {}): ObservedInstance => ({
  id: 'c2',
  userId: 'a',
  generation: 2,
  image: 'img:2',
  limits: '256m 1cpu 128p',
  running: true,
  address: 'http://127.0.0.1:42000',
  exit: null,
  startedAt: null,
  ...part,
})
const exited = (code: number, part: Partial<ObservedInstance> = {}) =>
  container({ running: false, address: null, exit: { code, outOfMemory: false, at: null }, ...part })
const created = (part: Partial<ObservedInstance> = {}) => container({ running: false, address: null, ...part })
const old = (part: Partial<ObservedInstance> = {}) => container({ id: 'c1', generation: 1, image: 'img:1', ...part })

type Case = [name: string, situation: Partial<Situation>, expected: Action[]]
const start: Action = { do: 'start' }
const failed = (code: string, part: object = {}) => ({ do: 'fail', code, stopId: null, ...part }) as unknown as Action
const remove = (id: string, because: string) => ({ do: 'remove', id, because }) as Action
const noteStopped = { do: 'note-stopped', code: 'stopped-by-admin' } as Action
const noteSuspended = { do: 'note-stopped', code: 'suspended' } as Action
const stoppedRow = row({ state: 'stopped', reasonCode: 'stopped-by-admin' })
const asleep = row({ state: 'stopped', reasonCode: 'idle' })
const stopped: Wanted = { ...alice, state: 'stopped' }
const suspended: Wanted = { ...alice, state: 'suspended' }
const removed: Wanted = { ...alice, state: 'removed' }

const groups: Record<string, Case[]> = {
  'an instance that should run': [
    ['is started when there never was one', {}, [start]],
    ['is left alone when it is ready', { known: row({}), observed: [container()] }, []],
    [
      'is watched while it starts',
      { known: row({ state: 'starting', changedAt: ago(5) }), observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'is given 30 s to answer',
      { known: row({ state: 'starting', changedAt: ago(29.9) }), observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'fails after 30 s without an answer and is ended',
      { known: row({ state: 'starting', changedAt: ago(30) }), observed: [container()] },
      [failed('start-timeout', { stopId: 'c2', failures: 1 })],
    ],
    ['is adopted when the database knows nothing of it', { observed: [container()] }, [{ do: 'adopt', id: 'c2' }]],
    [
      'is adopted when the database knows another container',
      { known: row({ containerId: 'gone' }), observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'is adopted when we crashed before we noted its container',
      { known: row({ state: 'starting', containerId: null }), observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'is adopted when it runs though a stop failed',
      { known: row({ state: 'failed', failures: 2, retryAt: ahead(60) }), observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'is adopted when it was wanted again before its stop',
      { known: stoppedRow, observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'is adopted when we crashed after replacing it',
      { known: row({ state: 'draining', containerId: 'c2' }), observed: [container()] },
      [{ do: 'adopt', id: 'c2' }],
    ],
    [
      'is started when we crashed before making its container',
      { known: row({ state: 'starting', containerId: null }) },
      [start],
    ],
    [
      'is started when we crashed between making and starting its container',
      { known: row({ state: 'starting', containerId: null }), observed: [created()] },
      [start],
    ],
    [
      'is started when we crashed before starting its stopped container again',
      { known: row({ state: 'starting', containerId: null }), observed: [exited(1)] },
      [start],
    ],
    ['is started when an admin wants it again', { known: stoppedRow, observed: [exited(0)] }, [start]],
    [
      'is started when we crashed in the middle of a replacement',
      {
        known: row({ state: 'draining', generation: 1, containerId: 'c1' }),
        observed: [exited(0, { id: 'c1', generation: 1 })],
      },
      [start, remove('c1', 'old-generation')],
    ],
  ],
  'an instance that ended': [
    [
      'is tried again at once after a good time',
      { known: row({}), observed: [exited(70)] },
      [failed('crashed', { failures: 1, retryAt: now })],
    ],
    [
      'is tried again after a second when it never was ready',
      { known: row({ state: 'starting' }), observed: [exited(70)] },
      [failed('crashed', { failures: 1, retryAt: ahead(1) })],
    ],
    [
      'waits twice as long each time',
      { known: row({ state: 'starting', failures: 2 }), observed: [exited(70)] },
      [failed('crashed', { failures: 3, retryAt: ahead(4) })],
    ],
    [
      'is in a crash loop from the fifth failure on',
      { known: row({ state: 'starting', failures: 4 }), observed: [exited(70)] },
      [failed('crash-loop', { failures: 5, retryAt: ahead(16) })],
    ],
    [
      'never waits for more than five minutes',
      { known: row({ state: 'starting', failures: 30 }), observed: [exited(70)] },
      [failed('crash-loop', { failures: 31, retryAt: ahead(300) })],
    ],
    [
      'is spread by its random part',
      { random: 1, known: row({ state: 'starting', failures: 3 }), observed: [exited(70)] },
      [failed('crashed', { retryAt: ahead(8.8) })],
    ],
    [
      'is forgiven what happened before ten good minutes',
      { known: row({ failures: 4, changedAt: ago(600) }), observed: [exited(70)] },
      [failed('crashed', { failures: 1, retryAt: now })],
    ],
    [
      'is not forgiven before that',
      { known: row({ failures: 1, changedAt: ago(599) }), observed: [exited(70)] },
      [failed('crashed', { failures: 2, retryAt: ahead(2) })],
    ],
    [
      'is named out of memory',
      { known: row({}), observed: [exited(137, { exit: { code: 137, outOfMemory: true, at: null } })] },
      [failed('out-of-memory')],
    ],
    ['is named killed from outside', { known: row({}), observed: [exited(143)] }, [failed('killed')]],
    ['is named ended by itself', { known: row({}), observed: [exited(0)] }, [failed('ended')]],
    [
      'is named by its exit code: port',
      { known: row({ state: 'starting' }), observed: [exited(66)] },
      [failed('port-taken')],
    ],
    [
      'is named by its exit code: no boot material',
      { known: row({}), observed: [exited(64)] },
      [failed('boot-missing')],
    ],
    [
      'is named by its exit code: boot material refused',
      { known: row({ state: 'starting' }), observed: [exited(65)] },
      [failed('boot-invalid')],
    ],
    [
      'is started at once when its container was removed, however often that happened',
      { known: row({ failures: 3 }) },
      [start],
    ],
    [
      'counts as vanished when its container was removed while it started',
      { known: row({ state: 'starting' }) },
      [failed('vanished', { failures: 1 })],
    ],
    [
      'waits for its next try',
      { known: row({ state: 'failed', retryAt: ahead(3) }), observed: [exited(70)] },
      [{ do: 'wait', until: ahead(3) }],
    ],
    [
      'waits even if a client asks',
      { asked: 'client', known: row({ state: 'failed', retryAt: ahead(3) }) },
      [{ do: 'wait', until: ahead(3) }],
    ],
    [
      'does not wait for an instant that only a clock set back can have put so far away',
      { known: row({ state: 'failed', retryAt: ahead(3_600) }) },
      [start],
    ],
    ['does not wait if an admin asks', { asked: 'admin', known: row({ state: 'failed', retryAt: ahead(3) }) }, [start]],
    [
      'is tried when its time has come',
      { known: row({ state: 'failed', failures: 3, retryAt: now }), observed: [exited(70)] },
      [start],
    ],
    [
      'is tried at once in a new generation',
      {
        known: row({ state: 'failed', generation: 1, failures: 9, retryAt: ahead(200) }),
        observed: [exited(70, { id: 'c1', generation: 1 })],
      },
      [start, remove('c1', 'old-generation')],
    ],
    [
      'begins to count anew in a new generation',
      { known: row({ state: 'starting', generation: 1, failures: 9 }), observed: [exited(70)] },
      [start],
    ],
  ],
  'an instance that somebody else started again': [
    [
      'is ended, because it waits for boot material in vain',
      { known: row({}), observed: [container()], restartedByOthers: true },
      [failed('boot-missing', { stopId: 'c2', retryAt: now })],
    ],
  ],
  'an instance that is silent': [
    ['is given two chances', { known: row({}), observed: [container()], silentChecks: 2 }, []],
    [
      'is ended and started again after the third',
      { known: row({}), observed: [container()], silentChecks: 3 },
      [failed('unresponsive', { stopId: 'c2', failures: 1, retryAt: now })],
    ],
  ],
  'another definition': [
    [
      'replaces a running instance of an older generation',
      { known: row({ generation: 1, containerId: 'c1' }), observed: [old()] },
      [{ do: 'replace', id: 'c1', because: 'generation' }],
    ],
    [
      'replaces one of a newer generation, too: a roll-back',
      { known: row({ generation: 3, containerId: 'c3' }), observed: [old({ id: 'c3', generation: 3 })] },
      [{ do: 'replace', id: 'c3', because: 'generation' }],
    ],
    [
      'removes what a crash in the middle of a replacement left',
      { known: row({}), observed: [container(), exited(0, { id: 'c1', generation: 1 })] },
      [remove('c1', 'old-generation')],
    ],
    [
      'removes an old instance that still runs beside the new one',
      { known: row({}), observed: [old(), container()] },
      [remove('c1', 'old-generation')],
    ],
    [
      'keeps one of several old ones until the new one runs',
      { known: row({ generation: 1, containerId: 'c1' }), observed: [old(), old({ id: 'c0', generation: 0 })] },
      [{ do: 'replace', id: 'c1', because: 'generation' }, remove('c0', 'old-generation')],
    ],
    [
      'of the image alone waits while somebody uses the instance',
      { known: row({}), observed: [container({ image: 'img:1' })], unused: false },
      [],
    ],
    ['of the image alone waits while nobody knows', { known: row({}), observed: [container({ image: 'img:1' })] }, []],
    [
      'of the image alone replaces an unused instance',
      { known: row({}), observed: [container({ image: 'img:1' })], unused: true },
      [{ do: 'replace', id: 'c2', because: 'image' }],
    ],
    [
      'of the image does not disturb a start',
      { known: row({ state: 'starting', changedAt: ago(1) }), observed: [container({ image: 'img:1' })], unused: true },
      [{ do: 'adopt', id: 'c2' }],
    ],
  ],
  'two instances of one user': [
    [
      'of one generation: the one that runs stays',
      { known: row({ containerId: 'c2' }), observed: [exited(0, { id: 'b2' }), container()] },
      [remove('b2', 'duplicate')],
    ],
    [
      'of one generation, both running: all control planes keep the same one',
      { known: row({ containerId: 'c2' }), observed: [container({ id: 'd2' }), container()] },
      [remove('d2', 'duplicate')],
    ],
  ],
  'an idle instance': [
    ['sleeps on', { known: asleep, observed: [exited(0)] }, []],
    [
      'is stopped when a crash of ours left it running',
      { known: asleep, observed: [container()] },
      [{ do: 'stop', id: 'c2' }],
    ],
    ['wakes for a client', { known: asleep, observed: [exited(0)], asked: 'client' }, [start]],
    ['wakes for an admin', { known: asleep, observed: [exited(0)], asked: 'admin' }, [start]],
    [
      'wakes in its new generation',
      { known: { ...asleep, generation: 1 }, observed: [exited(0, { id: 'c1', generation: 1 })], asked: 'client' },
      [start, remove('c1', 'old-generation')],
    ],
    ['wakes though its container was removed', { known: asleep, asked: 'client' }, [start]],
    ['sleeps on though its container was removed', { known: asleep }, []],
  ],
  'an instance that should be stopped': [
    [
      'is noted as stopped, then stopped',
      { wanted: stopped, known: row({}), observed: [container()] },
      [noteStopped, { do: 'stop', id: 'c2' }],
    ],
    [
      'is stopped when a crash of ours left it running',
      { wanted: stopped, known: stoppedRow, observed: [container()] },
      [{ do: 'stop', id: 'c2' }],
    ],
    ['is left alone when it is', { wanted: stopped, known: stoppedRow, observed: [exited(0)] }, []],
    [
      'is noted as suspended for another reason',
      { wanted: suspended, known: stoppedRow, observed: [exited(0)] },
      [noteSuspended],
    ],
    [
      'is stopped when its user is suspended',
      { wanted: suspended, known: row({}), observed: [container()] },
      [noteSuspended, { do: 'stop', id: 'c2' }],
    ],
    [
      'is not retried when it had failed',
      { wanted: stopped, known: row({ state: 'failed', retryAt: ago(1) }), observed: [exited(70)] },
      [noteStopped],
    ],
    ['never was: nothing to do', { wanted: suspended }, []],
    [
      'loses its old generations',
      { wanted: stopped, known: stoppedRow, observed: [exited(0), exited(0, { id: 'c1', generation: 1 })] },
      [remove('c1', 'old-generation')],
    ],
    [
      'keeps its last container for the log',
      { wanted: stopped, known: stoppedRow, observed: [exited(0, { id: 'c1', generation: 1 })] },
      [],
    ],
    [
      'does not wake for a client that asks',
      {
        wanted: suspended,
        asked: 'client',
        known: row({ state: 'stopped', reasonCode: 'suspended' }),
        observed: [exited(0)],
      },
      [],
    ],
  ],
  'a removed user': [
    [
      'bids farewell through the running instance before it goes',
      { wanted: removed, known: row({}), observed: [container(), exited(0, { id: 'c1', generation: 1 })] },
      [{ do: 'say-goodbye', id: 'c2' }, remove('c2', 'user-removed'), remove('c1', 'user-removed'), { do: 'erase' }],
    ],
    [
      'is erased when nothing is left',
      { wanted: removed, known: row({}) },
      [{ do: 'say-goodbye', id: null }, { do: 'erase' }],
    ],
    [
      'is removed though its instance had failed',
      { wanted: removed, known: row({ state: 'failed', retryAt: ahead(99) }), observed: [exited(70)] },
      [{ do: 'say-goodbye', id: null }, remove('c2', 'user-removed'), { do: 'erase' }],
    ],
  ],
  'a container without a user': [
    [
      'is removed',
      { wanted: null, observed: [container(), exited(0, { id: 'c1' })] },
      [remove('c2', 'orphan'), remove('c1', 'orphan')],
    ],
    ['that is gone needs nothing', { wanted: null }, []],
  ],
}

for (const [group, cases] of Object.entries(groups))
  describe(group, () => {
    test.each(cases)('%s', (_, situation, expected) => {
      // random 0.5: no spread
      const actions = plan({ wanted: alice, known: null, observed: [], now, random: 0.5, ...situation })
      expect(actions).toHaveLength(expected.length)
      expect(actions).toMatchObject(expected)
    })
  })

test('every reason is a sentence that names the next step or what happens next', () => {
  for (const [, situation] of Object.values(groups).flat())
    for (const action of plan({ wanted: alice, known: null, observed: [], now, random: 0.5, ...situation }))
      if ('reason' in action) expect(action.reason).toMatch(/^[A-Z].{20,}/)
})
