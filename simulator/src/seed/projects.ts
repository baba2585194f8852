import { insert, nextDisplayId, nextId, type Portal, type StoredRecord } from '../state.ts'
import { personId, ticketNamed } from './find.ts'
import { idOf, priorityName } from './lookups.ts'

const dayMs = 24 * 60 * 60 * 1000

interface PlannedTask {
  title: string
  who: string
  status?: string
}

interface PlannedMilestone {
  title: string
  status: string
  endsIn: number
  tasks: PlannedTask[]
}

interface PlannedProject {
  title: string
  code: string
  status: string
  manager: string
  percent: number
  text: string
  milestones: PlannedMilestone[]
  tasks: PlannedTask[]
}

const planned: PlannedProject[] = [
  {
    title: 'Wireless renewal Rotterdam',
    code: 'WLAN-RTM',
    status: 'In Progress',
    manager: 'Alice',
    percent: 35,
    text: '<p>New access points in halls A to C.</p>',
    milestones: [
      {
        title: 'Survey',
        status: 'Completed',
        endsIn: -10,
        tasks: [
          { title: 'Measure hall A', who: 'Alice', status: 'Closed' },
          { title: 'Measure hall B', who: 'Alice', status: 'Closed' },
        ],
      },
      {
        title: 'Installation',
        status: 'In Progress',
        endsIn: 20,
        tasks: [
          { title: 'Mount access points in hall A', who: 'Alice' },
          { title: 'Lay cable to rack 14', who: 'Alice' },
        ],
      },
      { title: 'Handover', status: 'Open', endsIn: 40, tasks: [{ title: 'Train operators', who: 'Carol' }] },
    ],
    tasks: [{ title: 'Order access points', who: 'Frank', status: 'Closed' }],
  },
  {
    title: 'Client migration to the new image',
    code: 'IMG-26',
    status: 'Open',
    manager: 'Bob',
    percent: 5,
    text: '<p>All 320 clients by the end of the year.</p>',
    milestones: [
      { title: 'Pilot', status: 'Open', endsIn: 30, tasks: [{ title: 'Choose 20 pilot users', who: 'Bob' }] },
    ],
    tasks: [{ title: 'Write the user guide', who: 'Frank' }],
  },
  {
    title: 'Audit 2026',
    code: 'AUD-26',
    status: 'On Hold',
    manager: 'Erin',
    percent: 10,
    text: '<p>Preparation of the security audit.</p>',
    milestones: [],
    tasks: [{ title: 'Collect evidence of disk encryption', who: 'Erin' }],
  },
]

/** Projects with milestones, tasks, members and a comment. */
export function seedProjects(portal: Portal, now: number): void {
  for (const one of planned) {
    const project = insert(portal, 'projects', {
      id: nextId(portal),
      display_id: nextDisplayId(portal, 'projects'),
      title: one.title,
      project_code: one.code,
      description: one.text,
      status: idOf(portal, 'project_statuses', one.status),
      priority: idOf(portal, 'priorities', priorityName(portal, 'Medium')),
      project_type: idOf(portal, 'project_types', 'Infrastructure'),
      owner: personId(portal, one.manager),
      project_manager: personId(portal, one.manager),
      site: idOf(portal, 'sites', 'Rotterdam'),
      percentage_completion: one.percent,
      estimated_hours: 120,
      scheduled_start_time: now - 20 * dayMs,
      scheduled_end_time: now + 60 * dayMs,
      created_by: personId(portal, 'Carol'),
      created_time: now - 25 * dayMs,
    })
    for (const task of one.tasks) addTask(portal, 'projects', project, task, now + 15 * dayMs)
    for (const planned of one.milestones) {
      const milestone = insert(portal, 'milestones', {
        id: nextId(portal),
        parent: project.id,
        parentTable: 'projects',
        title: planned.title,
        status: idOf(portal, 'project_statuses', planned.status),
        owner: project.owner,
        percentage_completion: planned.status === 'Completed' ? 100 : 0,
        scheduled_start_time: now - 20 * dayMs,
        scheduled_end_time: now + planned.endsIn * dayMs,
        created_by: project.created_by,
        created_time: project.created_time,
      })
      for (const task of planned.tasks) addTask(portal, 'milestones', milestone, task, now + planned.endsIn * dayMs)
    }
    insert(portal, 'project_members', {
      id: nextId(portal),
      parent: project.id,
      parentTable: 'projects',
      user: personId(portal, one.manager),
      project_role: idOf(portal, 'project_roles', 'Project Manager'),
      created_time: project.created_time,
    })
    insert(portal, 'project_comments', {
      id: nextId(portal),
      parent: project.id,
      content: '<p>Budget approved.</p>',
      created_by: personId(portal, 'Carol'),
      created_time: now - 18 * dayMs,
    })
    if (one.code === 'WLAN-RTM') ticketNamed(portal, 'No wireless coverage').project = project.id
  }
}

function addTask(portal: Portal, parentTable: string, parent: StoredRecord, task: PlannedTask, end: number): void {
  const isClosed = task.status === 'Closed'
  const row = insert(portal, 'tasks', {
    id: nextId(portal),
    parent: parent.id,
    parentTable,
    title: task.title,
    status: idOf(portal, 'statuses', task.status ?? 'Open'),
    owner: personId(portal, task.who),
    percentage_completion: isClosed ? 100 : 0,
    estimated_effort_hours: 8,
    scheduled_start_time: end - 5 * dayMs,
    scheduled_end_time: end,
    actual_end_time: isClosed ? end - dayMs : null,
    created_by: personId(portal, 'Carol'),
    created_time: parent.created_time,
  })
  if (!isClosed) return
  insert(portal, 'task_comments', {
    id: nextId(portal),
    parent: row.id,
    comment: '<p>Done as planned.</p>',
    created_by: row.owner,
    created_time: end - dayMs,
  })
}
