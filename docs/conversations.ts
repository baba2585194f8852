import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { type Session, startDesk } from '../instance/src/testing/desk.ts'

/**
 * Writes docs/conversations.md: `node docs/conversations.ts`. The answers are those of a run of the real tools against
 * the simulator through the SDK's client; only what a person says is written by hand.
 */
export const conversationsPage = fileURLToPath(new URL('conversations.md', import.meta.url))

type Args = Record<string, unknown>
/** An argument such as `$2.confirm_token` is read out of an earlier answer of the same conversation. */
type Turn = { says: string; calls: [tool: string, args: Args][]; note?: string }
type Conversation = { title: string; as: string; turns: Turn[] }

const conversations: Conversation[] = [
  {
    title: 'The morning: what is on fire?',
    as: 'carol',
    turns: [
      {
        says: 'What waits in the unassigned queue, and what is due first?',
        calls: [
          ['get_queue_summary', { scope: 'unassigned' }],
          ['search_requests', { view: 'unassigned', sort: 'due', order: 'asc', limit: 3 }],
        ],
      },
      {
        says: 'Take the first one for me.',
        calls: [['assign_request', { request_id: '$2.requests.0.number', technician: 'me' }]],
        note: 'Asked and actual say what was changed, field by field, as the site holds it afterwards.',
      },
    ],
  },
  {
    title: 'Log 15 minutes and resolve',
    as: 'carol',
    turns: [
      {
        says: 'Ana’s docking station does not charge any more. Open a ticket for her, high priority.',
        calls: [
          [
            'create_request',
            { subject: 'Docking station does not charge', requester: 'Ana Ferreira', priority: 'high' },
          ],
        ],
      },
      {
        says: 'It was the power supply, replaced. Log 15 minutes and resolve it.',
        calls: [
          ['resolve_request', { request_id: '$1.number', resolution: 'Power supply replaced.', log_minutes: 15 }],
        ],
        note: 'The time, the resolution and the status came in one call, and the answer is what the site holds afterwards.',
      },
    ],
  },
  {
    title: 'A mistake the model mends by itself',
    as: 'carol',
    turns: [
      {
        says: 'The badge reader at gate 4 is dead. Open a ticket, and make it top priority.',
        calls: [
          ['create_request', { subject: 'Badge reader at gate 4 is dead' }],
          ['update_request', { request_id: '$1.number', priority: 'Critical' }],
          ['list_field_options', { field: 'priority' }],
          ['update_request', { request_id: '$1.number', priority: 'High' }],
        ],
        note: 'The first try failed before anything was sent, and said where the values are; nothing was dropped silently.',
      },
    ],
  },
  {
    title: 'A mail to the requester, only after a look at it',
    as: 'carol',
    turns: [
      {
        says: 'Tell Ana that the part arrives on Monday.',
        calls: [
          ['create_request', { subject: 'Spare part for the label printer', requester: 'Ana Ferreira' }],
          ['reply_to_requester', { request_id: '$1.number', text: 'The part arrives on Monday.', mode: 'send' }],
        ],
        note: 'This client cannot ask by itself, so nothing was sent: Claude shows the preview and asks.',
      },
      {
        says: 'Yes, send it.',
        calls: [
          [
            'reply_to_requester',
            {
              request_id: '$1.number',
              text: 'The part arrives on Monday.',
              mode: 'send',
              confirm_token: '$2.confirm_token',
            },
          ],
        ],
      },
    ],
  },
]

export async function renderConversations(): Promise<string> {
  // a fixed clock gives the same page each time
  const now = Date.UTC(2026, 0, 14, 9, 30)
  const desk = await startDesk({ now: () => now })
  try {
    const parts: string[] = []
    for (const conversation of conversations) {
      const session = await desk.connect(await desk.context(conversation.as))
      parts.push(`## ${conversation.title}\n\n${await tell(conversation, session)}`)
    }
    return `# Conversations

What a technician says, which tools Claude calls, and what comes back. The answers are those of the real tools against the
simulator, recorded by \`node docs/conversations.ts\`; a test runs them again. In Claude Code the tools bear the name of the
server before their own.

${parts.join('\n\n')}
`.replaceAll(desk.simulator.url, 'https://helpdesk.example.com')
  } finally {
    await desk[Symbol.asyncDispose]()
  }
}

async function tell({ turns }: Conversation, session: Session): Promise<string> {
  const answers: unknown[] = []
  const lines: string[] = []
  for (const { says, calls, note } of turns) {
    lines.push(`> ${says}`)
    for (const [tool, args] of calls) {
      const filled = Object.fromEntries(Object.entries(args).map(([key, value]) => [key, fill(value, answers)]))
      const result = await session.call(tool, filled)
      answers.push(result.structuredContent)
      const said = result.content.flatMap(part => (part.type === 'text' ? [part.text] : [])).join('\n')
      lines.push(
        `Claude calls \`${tool}\` \`${hideToken(JSON.stringify(filled))}\``,
        `\`\`\`text\n${hideToken(said)}\n\`\`\``,
      )
    }
    if (note) lines.push(note)
  }
  return lines.join('\n\n')
}

function fill(value: unknown, answers: unknown[]): unknown {
  const [, number, path] = (typeof value === 'string' && /^\$(\d+)\.(.+)$/.exec(value)) || []
  if (!number || !path) return value
  return path
    .split('.')
    .reduce<unknown>((current, key) => (current as Args | undefined)?.[key], answers[Number(number) - 1])
}

/** The tokens are random; nothing else of an answer is touched. */
function hideToken(text: string): string {
  return text.replace(/(confirm_token"?: ?"?)[\w-]+/g, '$1…')
}

if (import.meta.main) await writeFile(conversationsPage, await renderConversations())
