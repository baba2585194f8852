import { expect, inject, test } from 'vitest'
import { createActivity } from './activity.ts'
import { silentLog } from './fleet/testing/support.ts'
import { openTestDatabase } from './testing/database.ts'

test('use that was noted by a clock that was ahead does not count as use to come', async () => {
  await using database = await openTestDatabase(inject('postgres'))
  const { db } = database
  const [user] = await db.query<{ id: string }>(
    "insert into users (username, display_name) values ('ann', 'Ann') returning id",
  )
  const dayMs = 24 * 60 * 60_000
  let skewMs = dayMs
  const now = () => Date.now() + skewMs
  const ahead = createActivity({ db, now, log: silentLog })
  Object.assign(ahead.meter(user!.id), { activeAt: now(), streams: 1, requests: 1 })
  await ahead.flush()
  // the clock is set right
  skewMs = 0
  ahead.meter(user!.id).streams = 0
  for (const activity of [ahead, createActivity({ db, now, log: silentLog })]) {
    const seen = (await activity.read()).get(user!.id)!
    expect(seen.activeAt).toBeLessThanOrEqual(Date.now() + 1_000)
    expect(seen.streamedAt).toBeLessThanOrEqual(Date.now() + 1_000)
    expect(seen.activeAt).toBeGreaterThan(Date.now() - 60_000)
    await activity.close()
  }
})
