import { type Simulator, type SimulatorOptions, startSimulator } from '../simulator.ts'

/** An answer of the API with what tests look at. */
export interface Answer {
  status: number
  /** Parsed JSON; undefined when the body is none. */
  // biome-ignore lint/suspicious/noExplicitAny: a test reads whatever the wire holds
  body: any
  text: string
  headers: Headers
}

export interface ApiClient {
  token: string
  get(path: string, input?: unknown): Promise<Answer>
  post(path: string, input?: unknown): Promise<Answer>
  put(path: string, input?: unknown): Promise<Answer>
  delete(path: string, input?: unknown): Promise<Answer>
  /** Any request with the usual headers; `path` is whole. */
  raw(path: string, init?: RequestInit): Promise<Answer>
}

/** A running simulator and clients of it, for tests over real HTTP. */
export interface Desk extends AsyncDisposable {
  sim: Simulator
  /** An API client with a fresh token of that user. */
  as(user: string, options?: { scopes?: string[]; portal?: string }): Promise<ApiClient>
  /** A call of the token endpoint. */
  tokenCall(parameters: Record<string, string>): Promise<Answer>
  control(method: string, path: string, body?: unknown): Promise<Answer>
}

export const accept = 'application/vnd.manageengine.sdp.v3+json'

async function answerOf(response: Response): Promise<Answer> {
  const text = await response.text()
  let body: unknown
  try {
    body = JSON.parse(text)
  } catch {
    body = undefined
  }
  return { status: response.status, body, text, headers: response.headers }
}

function clientOf(sim: Simulator, token: string, portal: string): ApiClient {
  const headers = { authorization: `Zoho-oauthtoken ${token}`, accept }
  const raw = async (path: string, init: RequestInit = {}) =>
    answerOf(await fetch(sim.url + path, { ...init, headers: { ...headers, ...init.headers }, redirect: 'manual' }))
  const root = `/app/${portal}/api/v3`
  const query = (input: unknown) =>
    input === undefined ? '' : `?input_data=${encodeURIComponent(JSON.stringify(input))}`
  const withBody = (method: string) => (path: string, input?: unknown) =>
    raw(root + path, {
      method,
      body: input === undefined ? undefined : new URLSearchParams({ input_data: JSON.stringify(input) }),
    })
  return {
    token,
    get: (path, input) => raw(root + path + query(input)),
    post: withBody('POST'),
    put: withBody('PUT'),
    delete: withBody('DELETE'),
    raw,
  }
}

export async function startDesk(options: SimulatorOptions = {}): Promise<Desk> {
  const sim = await startSimulator(options)
  const tokenCall: Desk['tokenCall'] = async parameters =>
    answerOf(await fetch(`${sim.url}/oauth/v2/token`, { method: 'POST', body: new URLSearchParams(parameters) }))
  return {
    sim,
    tokenCall,
    async as(user, { scopes, portal = 'itdesk' } = {}) {
      const { code, clientId, clientSecret } = sim.createGrantCode({ user, scopes })
      const { body } = await tokenCall({
        grant_type: 'authorization_code',
        code,
        client_id: clientId,
        client_secret: clientSecret,
      })
      return clientOf(sim, body.access_token, portal)
    },
    async control(method, path, body) {
      return answerOf(
        await fetch(`${sim.url}/_sim${path}`, {
          method,
          headers: body === undefined ? {} : { 'content-type': 'application/json' },
          body: body === undefined ? undefined : JSON.stringify(body),
        }),
      )
    },
    [Symbol.asyncDispose]: () => sim.close(),
  }
}

/** The first message of a failure. */
export const messageOf = (answer: Answer) => answer.body?.response_status?.messages?.[0]
