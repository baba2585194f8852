import { insert, nextDisplayId, nextId, type Portal } from '../state.ts'
import { personId } from './find.ts'
import { idOf } from './lookups.ts'

const dayMs = 24 * 60 * 60 * 1000

interface Article {
  title: string
  topic: string
  keywords: string
  status?: string
  isPublic?: boolean
  body: string
  hits: number
}

const articles: Article[] = [
  {
    title: 'VPN drops: choose gateway 1',
    topic: 'Network',
    keywords: 'vpn, gateway, drop, tunnel',
    hits: 41,
    body: '<h3>Symptom</h3><p>The tunnel drops after a few minutes.</p><h3>Workaround</h3><ol><li>Open the client</li><li>Choose <b>gw1.northwind.example</b></li></ol><table><tr><th>Client</th><th>Affected</th></tr><tr><td>5.8.1</td><td>no</td></tr><tr><td>5.8.2</td><td>yes</td></tr></table>',
  },
  {
    title: 'How to connect to the company Wi-Fi',
    topic: 'Network',
    keywords: 'wifi, wireless, wlan',
    isPublic: true,
    hits: 230,
    body: '<p>Choose <i>NW-Corp</i> and sign in with your mail address.</p>',
  },
  {
    title: 'Docking station: second monitor not detected',
    topic: 'Workplace',
    keywords: 'dock, monitor, wd19',
    hits: 18,
    body: '<p>Update the firmware of the dock with the vendor tool, then power-cycle it for 30 seconds.</p>',
  },
  {
    title: 'Clearing a paper jam in the duplex unit',
    topic: 'Workplace',
    keywords: 'printer, jam, duplex',
    isPublic: true,
    hits: 77,
    body: '<p>Open flap B, turn the green wheel, remove the sheet.</p>',
  },
  {
    title: 'Resetting an SAP password',
    topic: 'Applications',
    keywords: 'sap, password, reset',
    isPublic: true,
    hits: 154,
    body: '<p>Use the self service; the initial password is valid for one day.</p>',
  },
  {
    title: 'CRM export time-out',
    topic: 'Applications',
    keywords: 'crm, export, 504',
    status: 'Approval Pending',
    hits: 2,
    body: '<p>Export in portions of 2000 rows until release 4.2.</p>',
  },
  {
    title: 'What to do with a phishing mail',
    topic: 'Security',
    keywords: 'phishing, mail, report',
    isPublic: true,
    hits: 310,
    body: '<p>Do not click. Press <kbd>Report</kbd>. Never forward it.</p>',
  },
  {
    title: 'Encrypting a lab machine',
    topic: 'Security',
    keywords: 'bitlocker, encryption',
    status: 'UnApproved',
    hits: 0,
    body: '<p>Draft: use the lab policy.</p>',
  },
  {
    title: 'Onboarding: order of steps',
    topic: 'Workplace',
    keywords: 'onboarding, new employee',
    hits: 12,
    body: '<ul><li>Account</li><li>Laptop</li><li>Badge</li></ul>',
  },
  {
    title: 'Fax gateway settings',
    topic: 'Network',
    keywords: 'fax',
    status: 'Rejected',
    hits: 1,
    body: '<p>Outdated.</p>',
  },
]

/** Topics, articles of every approval status, and announcements. */
export function seedKnowledge(portal: Portal, now: number): void {
  const root = insert(portal, 'topics', { id: nextId(portal), name: 'General', parent_topic: null })
  for (const name of ['Network', 'Workplace', 'Applications', 'Security'])
    insert(portal, 'topics', { id: nextId(portal), name, parent_topic: root.id, owner: personId(portal, 'Carol') })
  for (const [i, article] of articles.entries()) {
    insert(portal, 'solutions', {
      id: nextId(portal),
      display_id: nextDisplayId(portal, 'solutions'),
      title: article.title,
      description: article.body,
      topic: idOf(portal, 'topics', article.topic),
      keywords: article.keywords,
      is_public: article.isPublic === true,
      approval_status: idOf(portal, 'solution_statuses', article.status ?? 'Approved'),
      owner: personId(portal, 'Frank'),
      created_by: personId(portal, 'Frank'),
      created_time: now - (60 - i) * dayMs,
      last_updated_time: now - (30 - i) * dayMs,
      last_updated_by: personId(portal, 'Frank'),
      review_date: now + (i - 2) * 20 * dayMs,
      expiry_date: article.title.startsWith('Fax') ? now - dayMs : null,
      no_of_hits: article.hits,
      likes: Math.floor(article.hits / 9),
      dislikes: 0,
      is_trashed: false,
    })
  }
  seedAnnouncements(portal, now)
}

function seedAnnouncements(portal: Portal, now: number): void {
  const announcement = (title: string, state: string, from: number, to: number, more: object) =>
    insert(portal, 'announcements', {
      id: nextId(portal),
      title,
      state,
      from_date: now + from * dayMs,
      to_date: now + to * dayMs,
      isbannerenabled: false,
      banner_style: 'info',
      is_public: true,
      user_groups: [idOf(portal, 'user_groups', 'All Staff')],
      created_by: personId(portal, 'Carol'),
      created_time: now + Math.min(0, from) * dayMs,
      followers: [],
      ...more,
    })
  announcement('VPN maintenance tonight', 'Published', -0.5, 1, {
    description: '<p>Gateway 2 restarts at 22:00.</p>',
    isbannerenabled: true,
    banner_style: 'warning',
  })
  announcement('New wireless in hall A', 'Published', -4, 20, { description: '<p>Please report dead spots.</p>' })
  announcement('Office closed on the bank holiday', 'Expired', -40, -30, {
    description: '<p>Service desk on call only.</p>',
  })
  announcement('Planned: password policy', 'Draft', 10, 40, {
    description: '<p>Draft of the new policy.</p>',
    is_public: false,
  })
}
