import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../testing/desk.ts'
import { confirmed, writesOf } from '../testing/support.ts'

let desk: Desk
let carol: Session
let ticket: string
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  ticket = (await carol.ok('create_request', { subject: 'Belongs to much', requester: 'Ana Ferreira' })).number
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const changed = (result: { changes: { field: string }[] }) => result.changes.map(({ field }) => field)

describe('problems', () => {
  it('are created, analysed, found and tied to tickets', async () => {
    const created = await carol.ok('create_problem', {
      title: 'Gateway loses tunnels',
      description: 'Since **Monday**',
      category: 'network',
      subcategory: 'vpn',
      priority: 'high',
      technician: 'me',
    })
    expect(created).toMatchObject({
      done: true,
      status: 'Open',
      priority: 'High',
      technician: 'Carol Jensen',
      url: expect.stringContaining('/ui/problems/'),
    })
    const updated = await carol.ok('update_problem', {
      problem_id: created.number,
      status: 'in progress',
      root_cause: 'Old firmware',
      workaround: 'Restart\n\n- twice',
      known_error: true,
    })
    expect(updated.done).toBe(true)
    const shown = await carol.ok('get_problem', {
      problem_id: `PRB-${created.number}`,
      include: ['tasks', 'notes', 'worklogs'],
    })
    expect(shown).toMatchObject({
      status: 'In Progress',
      root_cause: expect.stringContaining('Old firmware'),
      subcategory: 'VPN',
      tasks: 'none',
    })
    const { problems } = await carol.ok('search_problems', {
      text: 'tunnels',
      technician: 'me',
      status: ['in progress'],
    })
    expect(problems.map(({ number }: { number: string }) => number)).toContain(created.number)
    const tied = await carol.ok('link_requests_to_problem', {
      problem_id: created.number,
      requests: [ticket, '999999'],
    })
    expect(tied).toMatchObject({
      done: false,
      requests: [
        { request: ticket, tied: true },
        { request: '999999', tied: false, note: expect.stringContaining('no ticket') },
      ],
    })
    const again = await carol.ok('link_requests_to_problem', { problem_id: created.number, requests: [ticket] })
    expect(again.requests).toEqual([{ request: ticket, tied: true, note: 'it was so before' }])
    expect(
      (await carol.ok('link_requests_to_problem', { problem_id: created.number, requests: [ticket], remove: true }))
        .done,
    ).toBe(true)
  })

  it('say so where the site does not offer to tie tickets', async () => {
    desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: '/requests/*/problem' } })
    expect(await carol.fails('link_requests_to_problem', { problem_id: '1', requests: [ticket] })).toContain(
      'does not offer',
    )
  })
})

describe('changes', () => {
  it('are planned, moved on with a comment, and submitted only after consent', async () => {
    const created = await carol.ok('create_change', {
      title: 'New firmware',
      start: '+1d',
      end: '+2d',
      risk: 'low',
      change_owner: 'me',
      roll_out_plan: '1. Do it',
    })
    const { number } = created
    expect(created).toMatchObject({ done: true, stage: 'Submission', risk: 'Low' })
    const updated = await carol.ok('update_change', {
      change_id: number,
      back_out_plan: 'Put the old one back',
      emergency: true,
    })
    expect(updated.done).toBe(true)
    expect(await carol.fails('update_change', { change_id: number, status: 'Accepted' })).toContain('needs a comment')
    const before = writesOf(desk).length
    expect(await carol.ok('submit_change', { change_id: number, comment: 'ready' })).toMatchObject({
      done: false,
      preview: { from: 'Submission', to: 'Planning' },
    })
    expect(writesOf(desk).length).toBe(before)
    expect(await confirmed(carol, 'submit_change', { change_id: number, comment: 'ready' })).toMatchObject({
      done: true,
      stage: 'Planning',
    })
    expect(
      await carol.ok('get_change', {
        change_id: number,
        include: ['tasks', 'notes', 'worklogs', 'approvals', 'downtimes'],
      }),
    ).toMatchObject({
      roll_out_plan: expect.stringContaining('Do it'),
      back_out_plan: expect.stringContaining('old one'),
    })
    expect(await carol.ok('link_to_change', { change_id: number, requests: [ticket] })).toMatchObject({ done: true })
    expect(
      await carol.ok('link_to_change', { change_id: number, requests: [ticket], relation: 'caused_by' }),
    ).toMatchObject({ done: true })
  })

  it('a jump outside of the workflow is refused and explained', async () => {
    const { number } = await carol.ok('create_change', { title: 'Impatient' })
    expect(await carol.fails('update_change', { change_id: number, stage: 'Close', comment: 'now' })).toMatch(/stage/)
  })

  it('the calendar shows what touches a period, and what overlaps', async () => {
    await carol.ok('create_change', { title: 'Left', start: '+100d', end: '+102d' })
    await carol.ok('create_change', { title: 'Right', start: '+101d', end: '+103d' })
    const { changes, overlaps } = await carol.ok('get_change_calendar', { from: '+99d', to: '+102d' })
    expect(changes.map(({ title }: { title: string }) => title)).toEqual(['Left', 'Right'])
    expect(overlaps).toEqual([`${changes[0].number} and ${changes[1].number}`])
    expect(await carol.fails('get_change_calendar', { from: 'today', to: '+200d' })).toContain('three months')
  })

  it('are found by stage, owner and words', async () => {
    const { changes } = await carol.ok('search_changes', { change_owner: 'alice', total: true })
    for (const change of changes) expect(change.change_owner).toBe('Alice Moreau')
    expect(await carol.fails('search_changes', { stage: ['Plannin'] })).toContain('Planning')
  })
})

it('releases are created, changed, read and found', async () => {
  const { number } = await carol.ok('create_release', {
    title: 'Scanner app 3',
    release_engineer: 'me',
    start: '+5d',
    end: '+6d',
  })
  expect(await carol.ok('update_release', { release_id: number, roll_out_plan: 'Ring 1, then 2' })).toMatchObject({
    done: true,
  })
  expect(await carol.fails('update_release', { release_id: number, status: 'Approved' })).toContain('needs a comment')
  expect(await carol.ok('get_release', { release_id: number, include: ['tasks', 'notes'] })).toMatchObject({
    roll_out_plan: expect.stringContaining('Ring 1'),
  })
  const { releases } = await carol.ok('search_releases', { text: 'Scanner app 3', release_engineer: 'me' })
  expect(releases).toHaveLength(1)
})

describe('assets', () => {
  it('are created, handed out, tied to tickets and found by their user', async () => {
    const { options } = await carol.ok('list_field_options', { field: 'product' })
    await carol.ok('create_asset', {
      name: 'LT-4711',
      product: options[0].name,
      serial_number: 'SN-4711',
      cost: 1_200.5,
    })
    const updated = await carol.ok('update_asset', {
      asset_id: 'SN-4711',
      state: 'in use',
      user: 'Ana Ferreira',
      warranty_until: '+365d',
      comment: 'new',
    })
    expect(updated.done).toBe(true)
    expect(changed(updated)).toEqual(['state', 'user', 'warranty_expiry'])
    expect(await carol.ok('link_assets', { request_id: ticket, assets: ['LT-4711'] })).toMatchObject({
      done: true,
      assets: [expect.objectContaining({ name: 'LT-4711' })],
    })
    const shown = await carol.ok('get_asset', { asset_id: 'LT-4711', include: ['requests', 'history', 'software'] })
    expect(shown).toMatchObject({ user: 'Ana Ferreira', requests: [expect.objectContaining({ number: ticket })] })
    const { assets } = await carol.ok('search_assets', { user: 'ana.ferreira@northwind.example' })
    expect(assets.map(({ name }: { name: string }) => name)).toContain('LT-4711')
    expect(await carol.ok('link_assets', { request_id: ticket, assets: ['LT-4711'], remove: true })).toMatchObject({
      done: true,
      assets: 'none',
    })
  })

  it('an unknown one is refused with a next step', async () => {
    expect(await carol.fails('get_asset', { asset_id: 'LT-0000' })).toMatch(/no asset "LT-0000"[\s\S]*search_assets/)
  })
})

it('configuration items are found, changed and related', async () => {
  const { cis } = await carol.ok('search_cis', { ci_type: 'server', total: true })
  const [one, two] = cis
  const updated = await carol.ok('update_ci', { ci_type: 'ci_server', ci_id: one.id, attributes: { num_cores: 48 } })
  expect(updated).toMatchObject({ done: true, changes: [{ asked: '48', actual: 48 }] })
  const relate = { ci_type: 'server', ci_id: one.id, other_ci_id: two.id, relation: 'Connected to' }
  expect((await carol.ok('relate_cis', relate)).done).toBe(true)
  expect(await carol.ok('relate_cis', relate)).toMatchObject({ done: true, hint: 'It was so before.' })
  expect((await carol.ok('get_ci', { ci_type: 'server', ci_id: one.id })).relations).toContainEqual(
    expect.objectContaining({ ci: two.name }),
  )
  expect(await carol.ok('relate_cis', { ...relate, remove: true })).toMatchObject({ done: true })
  expect(await carol.fails('search_cis', { ci_type: 'toaster' })).toMatch(/no CI type "ci_toaster"[\s\S]*API name/)
})

it('projects, milestones and their tasks', async () => {
  const { number } = await carol.ok('create_project', {
    title: 'New hall',
    owner: 'me',
    start: 'today',
    end: '+60d',
    code: 'HALL',
  })
  expect(await carol.ok('update_project', { project_id: number, percent: 20, status: 'in progress' })).toMatchObject({
    done: true,
  })
  const saved = await carol.ok('save_milestone', { project_id: number, title: 'Cabling', end: '+30d' })
  expect(saved).toMatchObject({ done: true, what: 'created' })
  expect(await carol.ok('save_milestone', { project_id: number, title: 'cabling', percent: 50 })).toMatchObject({
    what: 'changed',
    milestone: { id: saved.milestone.id },
  })
  const { task_id } = await carol.ok('add_task', {
    module: 'milestone',
    project_id: number,
    parent_id: saved.milestone.id,
    title: 'Pull cable',
    owner: 'bob',
  })
  const { milestones, tasks } = await carol.ok('get_project', { project_id: number })
  expect(milestones).toHaveLength(1)
  expect(tasks).toEqual([expect.objectContaining({ id: task_id })])
  expect((await carol.ok('search_tasks', { project_id: number, owner: 'bob' })).tasks).toHaveLength(1)
  expect((await carol.ok('search_tasks', { owner: 'bob', text: 'Pull' })).tasks).toEqual([
    expect.objectContaining({ on: 'milestone', parent: expect.stringMatching(/cabling/i) }),
  ])
  const { projects } = await carol.ok('search_projects', { text: 'New hall' })
  expect(projects).toHaveLength(1)
})

it('articles are written, read, changed and found', async () => {
  const { id } = await carol.ok('create_solution', {
    title: 'Reset the badge reader',
    text: '1. Unplug\n2. Wait **10 s**',
    topic: 'workplace',
    keywords: 'badge, reader',
  })
  expect(await carol.ok('get_solution', { solution_id: id })).toMatchObject({
    title: 'Reset the badge reader',
    public: false,
    text: expect.stringContaining('Wait **10 s**'),
  })
  expect(await carol.ok('update_solution', { solution_id: id, text: 'Call us' })).toMatchObject({ done: true })
  const words = Array.from({ length: 8_000 }, (_, index) => `λέξη${index}`)
  await carol.ok('update_solution', { solution_id: id, text: words.join(' ') })
  const read: string[] = []
  for (let part = 1, parts = 1; part <= parts; part++) {
    const article = await carol.ok('get_solution', { solution_id: id, part })
    parts = article.parts
    read.push(...article.text.match(/λέξη\d+/g))
  }
  expect(read).toEqual(words)
  await carol.ok('update_solution', { solution_id: id, text: 'Call us' })
  const { solutions } = await carol.ok('search_solutions', { text: 'badge' })
  expect(solutions).toContainEqual(expect.objectContaining({ id, snippet: expect.stringContaining('Call us') }))
})

it('contracts and purchase orders are found and read', async () => {
  const { contracts } = await carol.ok('search_contracts', { ends_to: '+365d' })
  expect(await carol.ok('get_contract', { contract_id: contracts[0].id })).toMatchObject({ title: contracts[0].name })
  expect((await carol.ok('search_contracts', { text: contracts[0].name })).contracts).toHaveLength(1)
  const { purchase_orders } = await carol.ok('search_purchase_orders', { limit: 1 })
  expect(await carol.ok('get_purchase_order', { purchase_order_id: purchase_orders[0].id })).toMatchObject({
    items: expect.any(Array),
  })
})

it('an announcement reaches everybody only after consent', async () => {
  const ask = { title: 'Mail is slow', text: 'We are on it', to: '+1d' }
  const before = writesOf(desk).length
  expect(await carol.ok('create_announcement', ask)).toMatchObject({ done: false })
  expect(writesOf(desk).length).toBe(before)
  expect(await confirmed(carol, 'create_announcement', ask)).toMatchObject({ done: true, state: 'Published' })
  const { announcements } = await carol.ok('list_announcements')
  expect(announcements).toContainEqual(expect.objectContaining({ title: 'Mail is slow' }))
  expect(await carol.ok('list_announcements', { all: true, limit: 1 })).toMatchObject({ next_page: 2 })
})

describe('destructive tools', () => {
  const fresh = async () =>
    (await carol.ok('create_request', { subject: `To go ${Math.random()}`, requester: 'Ana Ferreira' })) as {
      number: string
      id: string
    }

  it('a ticket goes to the trash and comes back', async () => {
    const { number, id } = await fresh()
    expect(await confirmed(carol, 'trash_request', { request_id: number })).toMatchObject({ done: true })
    expect(
      (await carol.ok('search_requests', { text: `#${number}` })).requests.some((row: { id: string }) => row.id === id),
    ).toBe(false)
    expect(await carol.ok('restore_request', { request_id: id })).toMatchObject({ done: true, number })
    expect(await carol.ok('restore_request', { request_id: id })).toMatchObject({ done: true })
  })

  it('never purges where there is no trash', async () => {
    const { number } = await fresh()
    for (const name of ['_move_to_trash', 'move_to_trash'])
      desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: `/requests/*/${name}` } })
    const { confirm_token } = await carol.ok('trash_request', { request_id: number })
    expect(await carol.fails('trash_request', { request_id: number, confirm_token })).toContain('nothing was deleted')
    desk.simulator.faults.clear()
    await carol.ok('get_request', { request_id: number })
  })

  it('merged tickets are gone, and the preview says that it cannot be undone', async () => {
    const [stays, goes] = [await fresh(), await fresh()]
    expect((await carol.ok('merge_requests', { request_id: stays.number, others: [goes.number] })).question).toContain(
      'cannot be undone',
    )
    expect(await confirmed(carol, 'merge_requests', { request_id: stays.number, others: [goes.number] })).toMatchObject(
      { done: true },
    )
    await carol.fails('get_request', { request_id: goes.id })
  })

  it('notes, worklogs, tasks and assets are deleted one by one, each after consent', async () => {
    const { number } = await fresh()
    const { note_id } = await carol.ok('add_note', { request_id: number, text: 'x' })
    const { worklog_id } = await carol.ok('log_time', { request_id: number, minutes: 5 })
    const { task_id } = await carol.ok('add_task', { request_id: number, title: 'x' })
    const { options } = await carol.ok('list_field_options', { field: 'product' })
    await carol.ok('create_asset', { name: 'GO-1', product: options[0].name })
    const before = writesOf(desk).filter(({ method }) => method === 'DELETE').length
    expect((await confirmed(carol, 'delete_note', { request_id: number, note_id })).done).toBe(true)
    expect((await confirmed(carol, 'delete_worklog', { request_id: number, worklog_id })).done).toBe(true)
    expect((await confirmed(carol, 'delete_task', { request_id: number, task_id })).done).toBe(true)
    expect((await confirmed(carol, 'delete_asset', { asset_id: 'GO-1' })).done).toBe(true)
    expect(writesOf(desk).filter(({ method }) => method === 'DELETE').length).toBe(before + 4)
  })

  it('a person who may not delete is told so', async () => {
    const { number } = await fresh()
    await carol.ok('assign_request', { request_id: number, technician: 'dave' })
    const dave = await desk.connect(await desk.context('dave'))
    const { confirm_token } = await dave.ok('trash_request', { request_id: number })
    expect(await dave.fails('trash_request', { request_id: number, confirm_token })).toContain('HTTP 403')
  })
})

describe('the direct door to the API', () => {
  it.each([
    '/../users',
    '/portals',
    '/users/../requests',
    '/requests?x=1',
    '/requests/1#2',
    'https://evil.example/api/v3/roles',
    '/requests/1%2f..',
    '',
  ])('reads nothing at %j', async path => {
    await carol.fails('sdp_api_get', { path })
    expect(carol.calls.at(-1)?.sdpCalls).toBe(0)
  })

  it('reads below allowed modules, with list_info', async () => {
    const { answer } = await carol.ok('sdp_api_get', {
      path: '/app/itdesk/api/v3/requests',
      input_data: { list_info: { row_count: 2, fields_required: ['id', 'subject'] } },
    })
    expect(answer.requests).toHaveLength(2)
  })

  it('says where to go on when there is too much, so that no row is missed', async () => {
    const list_info: Record<string, unknown> = { row_count: 100, sort_field: 'id', sort_order: 'asc' }
    const seen: string[] = []
    for (let cuts = 0; ; cuts++) {
      const { answer, cut } = await carol.ok('sdp_api_get', { path: '/requests', input_data: { list_info } })
      seen.push(...answer.requests.map(({ id }: { id: string }) => id))
      if (!cut) break
      expect(cuts).toBeLessThan(100)
      list_info.start_index = Number(/"start_index": (\d+)/.exec(cut[0])?.[1])
    }
    const all = Object.values(desk.simulator.state.portals[0]?.tables.requests ?? {})
    expect(new Set(seen).size).toBe(seen.length)
    expect(seen.length).toBeGreaterThan(20)
    expect(seen.length).toBeLessThanOrEqual(all.length)
  })

  it('writes only after consent, only to modules, and only where the destructive toolset is allowed too', async () => {
    const { id } = await carol.ok('get_request', { request_id: ticket })
    const ask = { method: 'PUT', path: `/requests/${id}`, input_data: { request: { subject: 'Raw subject' } } }
    expect(await confirmed(carol, 'sdp_api_write', ask)).toMatchObject({ done: true })
    await carol.fails('sdp_api_write', { ...ask, path: '/priorities/1' })
    const power = await desk.connect(await desk.context('carol', { toolsets: ['core', 'advanced'] }))
    expect((await power.client.listTools()).tools.map(({ name }) => name)).not.toContain('sdp_api_write')
  })
})
